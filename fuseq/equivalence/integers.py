"""Integers of a file against our executor's, op by op, and its parameters against the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fuseq.backend import Runner
from fuseq.equivalence.compare import parity, steps_between
from fuseq.equivalence.float_sums import allowed_steps
from fuseq.equivalence.interfaces import integers_of, interface_of
from fuseq.equivalence.result import Check, Divergence
from fuseq.program import Program
from fuseq.quant.executor import execute


def file_parity(
    program: Program,
    runner: Runner,
    inputs: tuple[Tensor, ...],
    arithmetic: str | None = None,
) -> tuple[Check, Divergence | None]:
    """Every integer the runtime computes against our executor's, as `integer_parity` compares them.

    Args:
        program: quantized.
        runner: of the int8 file.
        inputs: float32, fed to both.
        arithmetic: of the runtime's kernels; the profile's own by default.

    Returns:
        The check, and the first value in execution order that breaks its gate.
    """
    assert program.quantization is not None
    interface = interface_of(program, arithmetic)
    feeds = interface.feeds(runner, tuple(x.numpy() for x in inputs))
    shown = dict(runner.integers(*feeds))
    # The outputs come from the file as it ships, not from the copy that shows its integers.
    outputs = zip(program.outputs(), interface.outputs, runner(*feeds), strict=True)
    for node, grid, output in outputs:
        if grid is not None:
            shown[node.name] = integers_of(output, grid)
    own = program.quantization.profile.arithmetic
    arithmetic = arithmetic or own
    name = "parity" if arithmetic == own else f"parity-{arithmetic}"
    size = "x".join(map(str, inputs[0].shape))
    pair = f"{arithmetic} executor <-> {runner.runtime}"
    return integer_parity(
        f"{name}-{size}",
        pair,
        program,
        shown,
        inputs,
        note=runner.note,
        arithmetic=arithmetic,
    )


def integer_parity(
    id: str,
    pair: str,
    program: Program,
    shown: Mapping[str, np.ndarray],
    inputs: tuple[Tensor, ...],
    *,
    note: str = "",
    arithmetic: str | None = None,
) -> tuple[Check, Divergence | None]:
    """Integers that something computed against our executor's, op by op.

    Each op of ours starts from the integers shown, so one difference is counted once, where it
    arises. Integer ops must agree in every value. An op that runs in float on both sides (a float
    island that ends in a quantizer, a convolution that reads or makes 16 bits) depends on how each
    adds and rounds floats: it may differ by a step, by more where rounding explains it
    (`fuseq.equivalence.float_sums`), and is counted apart.

    Args:
        id: name of the check.
        pair: what is compared, for people.
        program: quantized.
        shown: integers by value name.
        inputs: float32, which they were computed from.
        note: remark to keep with the result.
        arithmetic: ours; the profile's own by default.

    Returns:
        The check, and the first value in execution order that breaks its gate.
    """
    given = {name: torch.from_numpy(np.asarray(q).astype(np.int32)) for name, q in shown.items()}
    execution = execute(program, inputs, arithmetic, given=given)
    common = [node for node in program.graph.nodes if node.name in execution.integers]
    common = [node for node in common if node.name in shown]
    steps = {
        node.name: _largest_step(execution.integers[node.name].numpy(), shown[node.name])
        for node in common
    }
    rounded = {name: step for name, step in steps.items() if name in execution.rounded}
    allowed = allowed_steps(program, {**execution.integers, **given}, rounded)
    exact_names = [node.name for node in common if node.name not in rounded]
    check = parity(
        id,
        pair,
        [execution.integers[name].numpy() for name in exact_names],
        [shown[name] for name in exact_names],
        rounded=rounded,
        allowed=allowed,
        note=note,
    )
    wrong = [node for node in common if steps[node.name] > allowed.get(node.name, 0)]
    first = Divergence(wrong[0].name, program.source(wrong[0])) if wrong else None
    return check, first


def table_parity(program: Program, runner: Runner) -> tuple[Check, Divergence | None]:
    """Every scale, zero point and frozen integer in the file against the table, bit for bit.

    A scale that is off by one unit in the last place changes no integer on small data, so running
    the file would not show it. Steps of scales are counted in units of the last place.

    Returns:
        The check, and the first node with a parameter that differs or that the table lacks.
    """
    assert program.quantization is not None
    table = program.quantization
    ours: dict[str, np.ndarray] = {name: q.numpy() for name, q in table.integers.items()}
    for name, grid in table.grids.items():
        for key in (name, f"{name}.quantizer"):
            ours[f"{key}.scale"] = grid.scale.numpy()
            ours[f"{key}.zero_point"] = grid.zero_point.numpy()
    theirs = runner.parameters()
    known = [name for name in theirs if name in ours]
    wrong = [n for n in theirs if n not in ours or not np.array_equal(ours[n], theirs[n])]
    left, right = ([_bits(side[name]) for name in known] for side in (ours, theirs))
    note = f"differing: {', '.join(wrong[:5])}" if wrong else ""
    check = parity("table", "table of parameters <-> int8 file", left, right, note=note)
    owners = [
        n
        for n in program.graph.nodes
        if wrong and wrong[0].startswith((f"{n.name}.", f"{n.target}."))
    ]
    first = Divergence(owners[0].name, program.source(owners[0])) if owners else None
    return replace(check, passed=not wrong), first


def _bits(values: np.ndarray) -> np.ndarray:
    return values.view(np.int32) if values.dtype == np.float32 else values


def _largest_step(ours: np.ndarray, theirs: np.ndarray) -> int:
    shapes_differ = 2**31 * (ours.shape != theirs.shape)  # of empty arrays, too
    return int(steps_between(ours, theirs).max(initial=shapes_differ))
