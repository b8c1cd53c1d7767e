r"""How each value of a pair fares, and which one is the first that is wrong.

*Integers.* Each op of ours starts from the integers that the other side computed, so the first
value that differs is where the fault is (`fuseq.equivalence.integers`).

*Float against float.* Rounding moves every value; the first that moved by more than rounding
explains, by `fuseq.rounding`, is where the two stop being one function.

*Float against integers.* Every value differs, so the first one says nothing. What a node loses
itself is seen from its own operands: with x the reals of the integers it was given and y those of
what it made of them, and f the node in exact arithmetic with unquantized weights,

    own SQNR = 10 log10 ( sum f(x)^2 / sum (y - f(x))^2 )

which holds the rounding of its weights and of its result and nothing of the nodes before it. The
node with the lowest own SQNR contributes most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fuseq.equivalence.compare import decibel
from fuseq.equivalence.integers import integer_parity
from fuseq.equivalence.result import Divergence, Layer
from fuseq.equivalence.sides import Side, Values, float_form, float_values, side_of, tensors
from fuseq.program import Program
from fuseq.rounding import float32_bounds

Batch = tuple[np.ndarray, ...]
Run = Callable[[Side, Callable[..., Any], Batch], Any]
"""Runs a side on a batch; a failure is a coded error."""


def layer_table(a: Side, b: Side, batches: Iterable[Batch], run: Run) -> list[Layer]:
    """Every value that both sides show, worst first.

    Args:
        a: reference. What it does not show of a candidate with integers whose program is known is
            held to the program in float.
        b: candidate.
        batches: inputs.
        run: of a side.
    """
    program = b.knowledge if b.integers else None
    sums: dict[str, np.ndarray] = {}
    own: dict[str, np.ndarray] = {}
    counts: dict[str, list[int]] = {}
    for batch in batches:
        theirs = run(b, b.reals, batch)
        ours = run(a, a.reals, batch)
        if a.integers and b.integers:
            for name in ours.keys() & theirs.keys():
                _count(counts.setdefault(name, [0, 0]), ours[name], theirs[name])
        if program and not a.integers:
            ours = {**float_values(program, tensors(batch)), **ours}
        for name in ours:
            if name in theirs and ours[name].shape == theirs[name].shape:
                sums[name] = sums.get(name, np.zeros(2)) + _powers(ours[name], theirs[name])
        if program:
            for name, value in _own_results(program, tensors(batch), theirs).items():
                own[name] = own.get(name, np.zeros(2)) + _powers(value, theirs[name])
    sources = sources_of(b, a)
    rows = [
        Layer(
            name,
            sources.get(name, ""),
            decibel(*pair),
            decibel(*own[name]) if name in own else None,
            counts[name][0] if name in counts else None,
            counts[name][1] if name in counts else 0,
        )
        for name, pair in sums.items()
    ]
    return sorted(rows, key=_worst_first)


def _worst_first(row: Layer) -> tuple[float, float]:
    return -(row.differing or 0), row.sqnr_db if row.own_sqnr_db is None else row.own_sqnr_db


def first_wrong(a: Side, b: Side, batch: Batch, run: Run) -> Divergence | None:
    """Where a pair that failed starts to differ, as far as the two sides show it."""
    for side in (b, a):
        found = _own_fault(side, batch, run)
        if found:
            return found
    if a.integers and b.integers:
        return _first_integer(a, b, batch, run)
    if a.integers or b.integers:
        return _most_lost(a, b, batch, run)
    return past_its_bound(a, b, batch, run)


def sources_of(*sides: Side) -> dict[str, str]:
    """Value name -> `file:line`, of the first side that knows it."""
    found: dict[str, str] = {}
    for program in (side.knowledge for side in reversed(sides)):
        if program:
            found |= {node.name: program.source(node) for node in program.graph.nodes}
    return found


def _own_fault(side: Side, batch: Batch, run: Run) -> Divergence | None:
    """Where a file is not what its own program computes."""
    program = side.lowered
    if program is None:
        return None
    if side.integers is None:
        return past_its_bound(side_of(program), side, batch, run)
    shown = run(side, side.integers, batch)
    return integer_parity("", "", program, shown, tensors(batch))[1]


def _first_integer(a: Side, b: Side, batch: Batch, run: Run) -> Divergence | None:
    for knowing, other in ((a, b), (b, a)):
        program = knowing.knowledge
        if program and program.quantization is not None and other.integers:
            shown = run(other, other.integers, batch)
            names = {node.name: program.shape(node) for node in program.graph.nodes}
            if any(name in names for name in shown):
                found = integer_parity("", "", program, shown, tensors(batch))[1]
                if found:
                    return found
    ours, theirs = run(a, a.reals, batch), run(b, b.reals, batch)
    sources = sources_of(a, b)
    for name in ours:
        if name in theirs and not np.array_equal(ours[name], theirs[name]):
            return Divergence(name, sources.get(name, ""))
    return None


def _most_lost(a: Side, b: Side, batch: Batch, run: Run) -> Divergence | None:
    reference, candidate = (b, a) if a.integers else (a, b)
    if candidate.knowledge:
        plain = side_of(float_form(candidate.knowledge))
        found = past_its_bound(reference, plain, batch, run)
        if found:
            return found
    rows = layer_table(reference, candidate, [batch], run)
    lost = [row for row in rows if row.own_sqnr_db is not None] or rows
    return Divergence(lost[0].node, lost[0].source) if lost else None


def past_its_bound(a: Side, b: Side, batch: Batch, run: Run) -> Divergence | None:
    """First value, in execution order, of two float sides that differs by more than rounding.

    None where the outputs agree: passes move values between layers on purpose.
    """
    known = [p for p in (a.knowledge, b.knowledge) if p]
    if not known:
        return None
    bounds = [float32_bounds(tensors(batch), program) for program in known]
    ours, theirs = ({**run(side, side.reals, batch)} for side in (a, b))
    for side, values in ((a, ours), (b, theirs)):
        given = zip(known[-1].outputs(), run(side, side.run, batch), strict=True)
        values |= {node.name: value for node, value in given}
    outputs = [node.name for node in known[-1].outputs()]
    if all(_distance(ours[n], theirs[n]) <= _allowed(bounds, n) for n in outputs if n in ours):
        return None
    for node in known[-1].graph.nodes:
        name = node.name
        if name not in ours or name not in theirs:
            continue
        if _distance(ours[name], theirs[name]) > _allowed(bounds, name):
            return Divergence(name, sources_of(b, a).get(name, ""))
    return None


def _allowed(bounds: Sequence[Mapping[str, float]], name: str) -> float:
    """How far a value of two runs may lie apart, each with the rounding of its own program."""
    limits = [bound[name] for bound in bounds if name in bound]
    return sum(limits) * 2 / len(limits) if limits else math.inf


class _FromGiven(fx.Interpreter):
    """Computes each node in float from operands that are given, where they are."""

    def __init__(self, program: Program, given: Mapping[str, Tensor]) -> None:
        super().__init__(program.module)
        self.extra_traceback = False
        self.given, self.results = given, dict[str, Tensor]()

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if node.op != "placeholder" and node.name in self.given and isinstance(result, Tensor):
            self.results[node.name] = result
        return self.given.get(node.name, result)


def _own_results(
    program: Program, inputs: tuple[Tensor, ...], shown: Values
) -> dict[str, np.ndarray]:
    """What each node makes, in float, of the operands that a side shows."""
    names = {node.name for node in program.graph.nodes}
    given = {
        name: torch.from_numpy(np.ascontiguousarray(y, np.float32))
        for name, y in shown.items()
        if name in names
    }
    interpreter = _FromGiven(program, given)
    with torch.no_grad():
        interpreter.run(*inputs)
    return {
        name: value.numpy()
        for name, value in interpreter.results.items()
        if value.shape == given[name].shape
    }


def _count(counts: list[int], a: np.ndarray, b: np.ndarray) -> None:
    same = a.shape == b.shape
    counts[0] += int(np.count_nonzero(a != b)) if same else a.size
    counts[1] += a.size


def _powers(exact: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Power of what is exact, and of the error."""
    wide = exact.astype(np.float64)
    return np.array([np.sum(wide**2), np.sum((value.astype(np.float64) - wide) ** 2)])


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference; infinite where shapes differ or values are not finite."""
    if a.shape != b.shape:
        return math.inf
    largest = float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0))
    return largest if math.isfinite(largest) else math.inf
