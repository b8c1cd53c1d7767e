"""Taking parts of tensors and putting parts together: slices, padding, concatenation."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fuseq import ops
from fuseq.build import Builder, Value
from fuseq.spelling.arranging import squeeze, unsqueeze
from fuseq.spelling.registry import spelled

aten = torch.ops.aten
END = 2**63 - 1
"""The end of a slice that has none."""


@spelled(operator.getitem, "__getitem__")
def getitem(build: Builder, x: Value, index: Any) -> Value:
    if isinstance(x, tuple | list):
        return x[index]
    items = index if isinstance(index, tuple) else (index,)
    plain = all(item is None or item is ... or isinstance(item, slice) or
                _is_number(build, item) for item in items)  # fmt: skip
    if not (plain and build.is_tensor(x)):
        return build.foreign(operator.getitem, x, index)
    taken = sum(item is not None and item is not ... for item in items)
    rest = (slice(None),) * (len(build.shape(x)) - taken)
    at = next((i for i, item in enumerate(items) if item is ...), len(items))
    dim = 0
    for item in (*items[:at], *rest, *items[at + 1 :]):
        if item is None:
            x = unsqueeze(build, x, dim)
        elif isinstance(item, slice):
            x = take(build, x, dim, item.start, item.stop, item.step)
        else:
            x = select(build, x, dim, item)
            continue
        dim += 1
    return x


def _is_number(build: Builder, item: Value) -> bool:
    example = build.example(item)
    return isinstance(example, int) and not isinstance(example, bool)


@spelled(aten.slice.Tensor)
def take(
    build: Builder, x: Value, dim: int = 0, start: Any = None, end: Any = None,
    step: int | None = None,
) -> Value:  # fmt: skip
    dim %= len(build.shape(x))
    start, end, step = 0 if start is None else start, END if end is None else end, step or 1
    size = build.fixed_size(x, dim)
    if size is not None:
        start, end = (n + size if isinstance(n, int) and n < 0 else n for n in (start, end))
        end = min(end, size) if isinstance(end, int) else end
    elif isinstance(end, int) and end >= 2**31:
        end = END
    if isinstance(start, int) and start == 0 and step == 1 and end in (END, size):
        return x
    return build.call(ops.slice_tensor, x, dim=dim, start=start, end=end, step=step)


@spelled(torch.narrow, "narrow", aten.narrow.default)
def narrow(build: Builder, x: Value, dim: int, start: Any, length: Any) -> Value:
    return take(build, x, dim, start, build.shape_arithmetic(operator.add, start, length))


@spelled(torch.select, "select", aten.select.int)
def select(build: Builder, x: Value, dim: int, index: Any) -> Value:
    last = isinstance(index, int) and index == -1
    end = None if last else build.shape_arithmetic(operator.add, index, 1)
    return squeeze(build, take(build, x, dim, index, end), dim)


@spelled(torch.split, "split", aten.split.Tensor, aten.split_with_sizes.default)
def split(build: Builder, x: Value, split_size_or_sections: Any, dim: int = 0) -> Value:
    sections = split_size_or_sections
    if not isinstance(sections, Sequence):
        count = -(-build.shape(x)[dim] // build.example(sections))
        sections = [sections] * count
    ends: list[Value] = []
    for section in sections:
        ends.append(build.shape_arithmetic(operator.add, ends[-1] if ends else 0, section))
    pairs = zip([0, *ends[:-1]], [*ends[:-1], None], strict=True)
    return tuple(take(build, x, dim, start, end) for start, end in pairs)


@spelled(torch.chunk, "chunk", aten.chunk.default)
def chunk(build: Builder, x: Value, chunks: int, dim: int = 0) -> Value:
    rounded_up = build.shape_arithmetic(operator.add, build.size(x, dim), chunks - 1)
    part = build.shape_arithmetic(operator.floordiv, rounded_up, chunks)
    return split(build, x, part, dim)


@spelled(torch.unbind, "unbind", aten.unbind.int)
def unbind(build: Builder, x: Value, dim: int = 0) -> Value:
    return tuple(select(build, x, dim, i) for i in range(build.shape(x)[dim]))


@spelled(
    torch.cat, torch.concat, torch.concatenate, aten.cat.default, aten.concat.default,
    aten.concatenate.default,
)  # fmt: skip
def concat(build: Builder, tensors: Sequence[Value], dim: int = 0) -> Value:
    if len(tensors) == 1:
        return tensors[0]
    rank = len(build.shape(tensors[0]))
    return build.call(torch.cat, tuple(build.tensor(t) for t in tensors), dim=dim % rank)


@spelled(torch.stack, aten.stack.default)
def stack(build: Builder, tensors: Sequence[Value], dim: int = 0) -> Value:
    dim %= len(build.shape(tensors[0])) + 1
    return concat(build, [unsqueeze(build, build.tensor(t), dim) for t in tensors], dim)


@spelled(F.pad, aten.pad.default)
def pad(
    build: Builder, x: Value, pad: Sequence[Any], mode: str = "constant", value: float | None = None
) -> Value:
    if not any(isinstance(p, fx.Node) or p != 0 for p in pad):
        return x
    return build.call(F.pad, x, pad=tuple(pad), mode=mode, value=float(value or 0.0))


@spelled(aten.constant_pad_nd.default)
def constant_pad(build: Builder, x: Value, amounts: Sequence[int], value: float = 0.0) -> Value:
    return pad(build, x, amounts, "constant", value)


@spelled(aten.reflection_pad1d.default, aten.reflection_pad2d.default)
def reflection_pad(build: Builder, x: Value, amounts: Sequence[int]) -> Value:
    return pad(build, x, amounts, "reflect")


@spelled(aten.replication_pad1d.default, aten.replication_pad2d.default)
def replication_pad(build: Builder, x: Value, amounts: Sequence[int]) -> Value:
    return pad(build, x, amounts, "replicate")


@spelled(aten.slice_scatter.default, torch.slice_scatter, "slice_scatter")
def slice_scatter(
    build: Builder, x: Value, src: Value, dim: int = 0, start: Any = None, end: Any = None,
    step: int = 1,
) -> Value:  # fmt: skip
    start, end = 0 if start is None else start, END if end is None else end
    open_end = isinstance(end, int) and end >= 2**31
    if open_end and start == 0 and step == 1 and build.shape(x) == build.shape(src):
        return src
    return build.call(
        ops.slice_scatter, x, src, dim=dim % len(build.shape(x)), start=start,
        end=END if open_end else end, step=step,
    )  # fmt: skip


@spelled(aten.select_scatter.default, torch.select_scatter, "select_scatter")
def select_scatter(build: Builder, x: Value, src: Value, dim: int, index: int) -> Value:
    dim %= len(build.shape(x))
    end = None if index == -1 else index + 1
    return slice_scatter(build, x, unsqueeze(build, build.tensor(src), dim), dim, index, end)


@spelled(aten.copy.default)
def copy(build: Builder, x: Value, src: Value, non_blocking: bool = False) -> Value:
    if build.shape(x) == build.shape(src):
        return src
    return build.foreign(aten.copy.default, build.tensor(x), build.tensor(src))
