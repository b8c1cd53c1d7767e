"""Calibration: run the float program over data and watch the range of every quantized value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.quant.observer import OBSERVERS, Observer
from fuseq.quant.structure import Structure, bounds


def batches_of(program: Program, data: Iterable[Any]) -> Iterator[tuple[Tensor, ...]]:
    """Batches as tuples of a program's inputs, whatever the loader gives.

    Args:
        program: gives names, shapes and dtypes of its inputs, and which sizes are free.
        data: batches: a tensor, a tuple or list that starts with the inputs (labels after them are
            left out), or a dict that has them by name. A program for one batch size gets larger
            batches in parts of that size.

    Raises:
        FuseqError: FQ006 for a batch that does not fit.
    """
    for number, batch in enumerate(data, start=1):
        for tensors in _parts(program, _inputs(program, batch, number)):
            _require_fit(program, tensors, number)
            yield tensors


def _inputs(program: Program, batch: Any, number: int) -> tuple[Tensor, ...]:
    names = program.input_names
    if isinstance(batch, Tensor):
        batch = (batch,)
    if isinstance(batch, Mapping):
        if not all(name in batch for name in names):
            held = ", ".join(map(str, batch)) or "nothing"
            raise _unfit(number, f"has {held}, the program takes {', '.join(names)}")
        batch = tuple(batch[name] for name in names)
    if not isinstance(batch, tuple | list):
        raise _unfit(number, f"is a {type(batch).__name__}, not tensors")
    if len(batch) < len(names):
        raise _unfit(number, f"has {len(batch)} tensors, the program takes {len(names)}")
    for value in batch[: len(names)]:
        if not isinstance(value, Tensor):
            raise _unfit(number, f"has a {type(value).__name__} where a tensor is needed")
        if value.layout != torch.strided or value.is_meta:
            raise _unfit(number, f"has a tensor on {value.device}, {value.layout}, not a dense one")
    return tuple(
        # A float64 twin, on which the pipeline proves a pass, takes the data of its original.
        x.detach().double() if (x.dtype, y.dtype) == (torch.float32, torch.float64) else x.detach()
        for x, y in zip(batch, program.example_inputs, strict=False)
    )


def _parts(program: Program, batch: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """A batch in parts of the examples' batch size, if that is fixed and divides it."""
    pairs = list(zip(batch, program.example_inputs, strict=True))
    is_free = any(dim == 0 for _, dim in program.origin.dynamic)
    if is_free or not all(x.dim() and y.dim() and len(y) for x, y in pairs):
        return iter([batch])
    counts = {len(x) / len(y) for x, y in pairs}
    count = counts.pop()
    if counts or not count.is_integer() or count < 1:
        return iter([batch])
    return zip(*(x.chunk(int(count)) for x in batch), strict=True)


def _require_fit(program: Program, batch: tuple[Tensor, ...], number: int) -> None:
    for index, (x, example) in enumerate(zip(batch, program.example_inputs, strict=True)):
        free = {d for i, d in program.origin.dynamic if i == index}
        fits = x.dim() == example.dim() and all(
            d in free or x.shape[d] == example.shape[d] for d in range(x.dim())
        )
        if not fits or x.dtype != example.dtype:
            raise _unfit(
                number,
                f"has shape {tuple(x.shape)} and {x.dtype}, "
                f"the program takes {tuple(example.shape)} and {example.dtype}",
            )
        if not x.numel():
            raise _unfit(number, f"is empty: its shape is {tuple(x.shape)}")


def _unfit(number: int, how: str) -> FuseqError:
    return FuseqError(
        "FQ006",
        f"calibration batch {number} {how}",
        fix="yield what example_inputs() returns: a float32 tensor, or a tuple of one per input",
    )


def repeatable(data: Iterable[Any] | None) -> Iterable[Any] | None:
    """Data that can be read more than once: a loader as it is, an iterator as a list."""
    return list(data) if isinstance(data, Iterator) else data


def calibrate(
    program: Program,
    structure: Structure,
    data: Iterable[Any],
    observer: str = "minmax",
    progress: Callable[[int], None] | None = None,
) -> Mapping[str, Observer]:
    """Observe every group of a structure.

    Args:
        program: float program.
        structure: of that program.
        data: batches, seen once, in order.
        observer: a key of `OBSERVERS`.
        progress: called with the number of batches seen so far.

    Returns:
        One observer per group; all of them saw data.

    Raises:
        FuseqError: FQ006 if there is no batch or a batch does not fit, FQ401 if a value is not
            finite, FQ007 for an unknown observer.
    """
    if observer not in OBSERVERS:
        raise FuseqError(
            "FQ007", f"unknown observer '{observer}'", fix=f"one of {', '.join(OBSERVERS)}"
        )
    observers = {group: OBSERVERS[observer]() for group in structure.group.values()}
    watcher = _Watcher(program, structure, observers)
    count = 0
    with torch.no_grad():
        for count, batch in enumerate(batches_of(program, data), start=1):
            watcher.run(*batch)
            if progress:
                progress(count)
    if not count:
        raise FuseqError(
            "FQ006",
            "the calibration set is empty",
            fix="--calib DIR, FILE.npz, or calibration_data()",
        )
    return observers


class _Watcher(fx.Interpreter):
    def __init__(
        self, program: Program, structure: Structure, observers: Mapping[str, Observer]
    ) -> None:
        super().__init__(program.module)
        self.extra_traceback = False
        self.program, self.structure, self.observers = program, structure, observers

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        group = self.structure.group.get(node.name)
        if group is not None and isinstance(result, Tensor):
            if not torch.isfinite(result).all():
                raise FuseqError(
                    "FQ401",
                    f"{self.program.where(node)} has values that are not finite during calibration",
                    fix="look at the calibration data for NaN, and at the weights before this node",
                )
            interval = used_interval(node, self.structure)
            if interval is not None:
                self.observers[group].update(result.clamp(*interval))
        return result


def used_interval(node: fx.Node, structure: Structure) -> tuple[float, float] | None:
    """Interval in which the readers of a value tell its values apart.

    What lies outside need not be on its grid: the grid's ends cut as the readers do.

    Args:
        node: a value with a grid.
        structure: it belongs to.

    Returns:
        Lower and upper end; None where every reader shares the grid, and is observed itself.
    """
    group = structure.group[node.name]
    others = [user for user in node.users if structure.group.get(user.name) != group]
    if node.users and not others:
        return None
    cut = [bounds(user) for user in others]
    low, high = bounds(node)
    # Of a value that its readers cut where it never is, only its nearest end is left.
    ends = (min(first for first, _ in cut), max(last for _, last in cut))
    return min(max(ends[0], low), high), min(max(ends[1], low), high)
