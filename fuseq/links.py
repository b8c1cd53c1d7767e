r"""How the result of an op reads an operand, along one axis of the image.

Position i of the result reads these positions of the operand, on a map without borders:

    convolution, pool          s*i - p + d*t,  t = 0..k-1
    transposed convolution     every j with  s*j - p + d*t = i  for a t in 0..k-1
    nearest resize             floor(i * r),  r = size before / size after
    linear resize              floor(c) and ceil(c),  c = (i + 1/2) * r - 1/2;
                               with align_corners  c = i * (before - 1) / (after - 1)
    adaptive pool              floor(i * r) .. ceil((i + 1) * r) - 1
    pixel shuffle, unshuffle   floor(i / r);  r*i + t,  t = 0..r-1
    pad, slice                 i - p;  start + step*i

An op that reads all positions for each of its results, or one that is not known, has no link.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import fx

from fuseq import ops
from fuseq.program import Program

Positions: TypeAlias = tuple[np.ndarray, np.ndarray]
"""First and last of the positions that are read, int64; none where first > last."""

NEVER = np.int64(2**40)
"""First position, and with a minus last position, where none is read."""


@dataclass(frozen=True)
class Link:
    """How positions of a result read those of an operand.

    Attributes:
        dim: dimension of the result that runs along the axis.
        step: operand positions from one result position to the next.
        read: operand positions that result positions read.
    """

    dim: int
    step: Fraction = Fraction(1)
    read: Callable[[Positions], Positions] = lambda at: at


@dataclass(frozen=True)
class Edge:
    """One operand of a node.

    Attributes:
        program: that holds the node.
        node: the reader.
        index: number of the operand among all tensors the node reads.
        operand: what is read.
        dim: dimension of the operand that runs along the axis.
    """

    program: Program
    node: fx.Node
    index: int
    operand: fx.Node
    dim: int

    @property
    def before(self) -> tuple[int, ...]:
        """Shape of the operand."""
        return self.program.shape(self.operand)

    @property
    def after(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self.program.shape(self.node)

    @property
    def axis(self) -> int | None:
        """0 along the rows of a map, 1 along its columns, None along anything else."""
        axis = self.dim - len(self.before) + 2
        return axis if axis >= 0 else None

    @property
    def layer(self) -> Any:
        """The module a node calls."""
        return self.program.get(self.node)

    def attribute(self, name: str) -> Any:
        """An attribute at the captured size: sizes are computed, all else stays what it is."""
        value = self.node.kwargs[name]
        return fx.node.map_aggregate(value, lambda item: _number(self.program, item))

    def runs_along(self, dim: Any) -> bool:
        """Whether a dimension, possibly counted from the end, is that of the axis."""
        return bool(dim % len(self.before) == self.dim)


def tensors_read(node: fx.Node) -> list[fx.Node]:
    """Every node among the arguments, in order, also twice."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return found


def link_of(edge: Edge) -> Link | None:
    """How a node reads an operand through a window; None if it reads the whole axis."""
    rule = RULES.get(ops.name_of(edge.program, edge.node)) or _foreign_rule(edge.node)
    return rule(edge) if rule else None


def _number(program: Program, value: Any) -> Any:
    if not isinstance(value, fx.Node):
        return value
    if value.target is ops.sym_size:
        x, dim = value.args
        assert isinstance(x, fx.Node)
        return program.shape(x)[dim]  # type: ignore[index]
    assert callable(value.target)
    return value.target(*(_number(program, argument) for argument in value.args))


def _shifted(by: int) -> Callable[[Positions], Positions]:
    return _strided(1, by, by)


def _strided(stride: int, lowest: int, highest: int) -> Callable[[Positions], Positions]:
    return lambda at: (stride * at[0] + lowest, stride * at[1] + highest)


def _pointwise(edge: Edge) -> Link | None:
    if "shape" not in edge.operand.meta or "shape" not in edge.node.meta:
        return Link(edge.dim)  # one of several results
    dim = edge.dim + len(edge.after) - len(edge.before)
    return Link(dim) if edge.before[edge.dim] == edge.after[dim] else None


def _convolution(edge: Edge) -> Link | None:
    conv, axis = edge.layer, edge.axis
    if axis is None:
        return None
    span = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
    padding = {"same": span // 2, "valid": 0}.get(str(conv.padding))
    before = conv.padding[axis] if padding is None else padding
    stride = conv.stride[axis]
    return Link(edge.dim, Fraction(stride), _strided(stride, -before, span - before))


def _transposed(edge: Edge) -> Link | None:
    conv, axis = edge.layer, edge.axis
    if axis is None:
        return None
    stride = conv.stride[axis]
    taps = [conv.dilation[axis] * t - conv.padding[axis] for t in range(conv.kernel_size[axis])]

    def read(at: Positions) -> Positions:
        first, last = np.full(at[0].shape, NEVER), np.full(at[0].shape, -NEVER)
        for tap in taps:
            low, high = -((tap - at[0]) // stride), (at[1] - tap) // stride
            first = np.where(low <= high, np.minimum(first, low), first)
            last = np.where(low <= high, np.maximum(last, high), last)
        return first, last

    return Link(edge.dim, Fraction(1, stride), read)


def _pool(edge: Edge) -> Link | None:
    if edge.axis is None:
        return Link(edge.dim)
    names = ("kernel_size", "stride", "padding")
    kernel, stride, padding = (edge.attribute(name)[edge.axis] for name in names)
    dilation = edge.attribute("dilation")[edge.axis] if "dilation" in edge.node.kwargs else 1
    highest = dilation * (kernel - 1) - padding
    return Link(edge.dim, Fraction(stride), _strided(stride, -padding, highest))


def _adaptive_pool(edge: Edge) -> Link | None:
    before, after = edge.before[edge.dim], edge.after[edge.dim]
    if edge.axis is None:
        return Link(edge.dim)
    if after == 1:
        return None
    return Link(
        edge.dim,
        Fraction(before, after),
        lambda at: (at[0] * before // after, -(-(at[1] + 1) * before // after) - 1),
    )


def _resize(edge: Edge) -> Link | None:
    before, after = edge.before[edge.dim], edge.after[edge.dim]
    if edge.axis is None:
        return Link(edge.dim)
    if before == 1:
        return None
    factors, linear = edge.attribute("scale_factor"), edge.attribute("mode") != "nearest"
    ratio = Fraction(before, after)
    if factors:
        ratio = 1 / Fraction(factors[edge.axis]).limit_denominator(1000)
    offset = (ratio - 1) / 2 if linear else Fraction(0)
    if edge.attribute("align_corners"):
        ratio, offset = Fraction(before - 1, max(after - 1, 1)), Fraction(0)
    whole = math.lcm(ratio.denominator, offset.denominator)
    scale, shift = int(ratio * whole), int(offset * whole)

    def read(at: Positions) -> Positions:
        up = whole - 1 if linear else 0
        return (scale * at[0] + shift) // whole, (scale * at[1] + shift + up) // whole

    return Link(edge.dim, ratio, read)


def _pixel_shuffle(edge: Edge) -> Link | None:
    factor = edge.attribute("upscale_factor")
    if edge.axis is None:
        return None
    return Link(edge.dim, Fraction(1, factor), lambda at: (at[0] // factor, at[1] // factor))


def _pixel_unshuffle(edge: Edge) -> Link | None:
    factor = edge.attribute("downscale_factor")
    if edge.axis is None:
        return None
    return Link(edge.dim, Fraction(factor), _strided(factor, 0, factor - 1))


def _pad(edge: Edge) -> Link:
    amounts, place = edge.attribute("pad"), 2 * (len(edge.before) - 1 - edge.dim)
    return Link(edge.dim, read=_shifted(-amounts[place] if place < len(amounts) else 0))


def _slice(edge: Edge) -> Link:
    if not edge.runs_along(edge.attribute("dim")):
        return Link(edge.dim)
    start, end, step = (edge.attribute(name) for name in ("start", "end", "step"))
    start, _, _ = slice(start, end).indices(edge.before[edge.dim])
    return Link(edge.dim, Fraction(step), _strided(step, start, start))


def _slice_scatter(edge: Edge) -> Link | None:
    if edge.index == 0 or not edge.runs_along(edge.attribute("dim")):
        return Link(edge.dim)
    start, step = edge.attribute("start"), edge.attribute("step")
    start, _, _ = slice(start, None).indices(edge.after[edge.dim])
    return Link(edge.dim, read=_shifted(-start)) if step == 1 else None


def _concat(edge: Edge) -> Link:
    if not edge.runs_along(edge.attribute("dim")):
        return Link(edge.dim)
    parts = tensors_read(edge.node)[: edge.index]
    return Link(edge.dim, read=_shifted(-sum(_size(edge.program, p, edge.dim) for p in parts)))


def _size(program: Program, part: fx.Node, dim: int) -> int:
    shape = program.constant(part).shape if part.op == "get_attr" else program.shape(part)
    return shape[dim]


def _reshape(edge: Edge) -> Link | None:
    """A dimension stays one if what stands behind it holds as many numbers as before."""
    behind = math.prod(edge.before[edge.dim + 1 :])
    for dim, size in enumerate(edge.after):
        if size == edge.before[edge.dim] and math.prod(edge.after[dim + 1 :]) == behind:
            return Link(dim)
    return None


def _permute(edge: Edge) -> Link:
    return Link(edge.attribute("dims").index(edge.dim))


def _unsqueeze(edge: Edge) -> Link:
    return Link(edge.dim + (edge.attribute("dim") <= edge.dim))


def _mean(edge: Edge) -> Link | None:
    return _reduced(edge, edge.attribute("dim"), edge.attribute("keepdim"))


def _reduced(edge: Edge, over: Any, keep: bool) -> Link | None:
    dims = {d % len(edge.before) for d in (over if isinstance(over, list | tuple) else (over,))}
    if edge.dim in dims:
        return None
    return Link(edge.dim if keep else edge.dim - sum(d < edge.dim for d in dims))


def _linear(edge: Edge) -> Link | None:
    return None if edge.runs_along(-1) else Link(edge.dim)


def _layer_norm(edge: Edge) -> Link | None:
    normed = len(edge.layer.normalized_shape)
    return Link(edge.dim) if edge.dim < len(edge.before) - normed else None


def _softmax(edge: Edge) -> Link | None:
    return None if edge.runs_along(edge.attribute("dim")) else Link(edge.dim)


def _matmul(edge: Edge) -> Link | None:
    return None if edge.runs_along(-1 if edge.index == 0 else -2) else _pointwise(edge)


def _foreign_reduction(edge: Edge) -> Link | None:
    given = dict(zip(("x", "dim", "keepdim"), edge.node.args, strict=False))
    given |= edge.node.kwargs
    over = given.get("dim")
    if over is None or isinstance(over, fx.Node):
        return None
    return _reduced(edge, over, bool(given.get("keepdim", False)))


def _foreign_rule(node: fx.Node) -> Callable[[Edge], Link | None] | None:
    """A rule for an op outside the vocabulary, by what torch's own tags say of it."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    tags = _tags(node.target, name)
    if node.target is torch.ops.aten.expand.default or name == "getitem":
        return _pointwise
    # `torch.max` is both: of one tensor over a dimension, of two number by number.
    if torch.Tag.reduction in tags and len(tensors_read(node)) == 1:
        return _foreign_reduction
    return _pointwise if torch.Tag.pointwise in tags else None


def _tags(target: Any, name: str) -> set[torch.Tag]:
    if isinstance(target, torch._ops.OpOverload):
        return set(target.tags)
    packet = getattr(torch.ops.aten, name, None) if name else None
    overloads = packet.overloads() if packet else ()
    return {tag for overload in overloads for tag in getattr(packet, overload).tags}


RULES: dict[str, Callable[[Edge], Link | None]] = {
    **dict.fromkeys(
        "add sub mul div relu clamp sigmoid tanh leaky_relu hardsigmoid hardswish silu gelu prelu "
        "batch_norm batch_norm1d requantize".split(),
        _pointwise,
    ),
    "conv2d": _convolution,
    "conv_transpose2d": _transposed,
    "linear": _linear,
    "layer_norm": _layer_norm,
    "matmul": _matmul,
    "softmax": _softmax,
    "mean": _mean,
    "max_pool": _pool,
    "avg_pool": _pool,
    "adaptive_avg_pool": _adaptive_pool,
    "interpolate": _resize,
    "interpolate_nearest": _resize,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "pad": _pad,
    "pad_value": _pad,
    "slice": _slice,
    "slice_scatter": _slice_scatter,
    "concat": _concat,
    "reshape": _reshape,
    "permute": _permute,
    "unsqueeze": _unsqueeze,
}
"""Rules of the vocabulary. Instance and group norms average over the whole map: they have none."""

WINDOWED = frozenset(
    "conv2d conv_transpose2d max_pool avg_pool adaptive_avg_pool interpolate interpolate_nearest "
    "pixel_shuffle pixel_unshuffle".split()
)
"""Ops whose operand is a map: its last two dimensions are rows and columns."""
