"""The checks `lower` runs: trained -> fused -> quantized -> file, each against the one before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fuseq import shapes, verify
from fuseq.backend import Backend, Runner
from fuseq.equivalence.compare import (
    FLOAT32_FORMS,
    exact,
    fidelity,
    parity,
    relative_limits,
)
from fuseq.equivalence.result import Check, CheckResult, Divergence
from fuseq.equivalence.sides import Interface
from fuseq.program import Program
from fuseq.quant.executor import execute
from fuseq.rewrite import Pass, Pipeline, split_by_promise
from fuseq.rounding import float32_bound
from fuseq.tracing import capture
from fuseq.user_code import user_code

EXACT_F64 = 1e-12
"""Largest relative error of a fusion in float64. Rounding of the deepest networks measured stays
below 1e-14; the mildest wrong fold known (a forgotten epsilon) is at 1e-5."""

LARGE = 512 * 512
"""Pixels of a frame above which the checks use a smaller one, where sizes are free."""

Evaluate = Callable[[Callable[[np.ndarray], np.ndarray]], Mapping[str, float]]


def check_lowered(
    captured: Program,
    program: Program,
    steps: Sequence[Pass],
    backend: Backend,
    files: Mapping[str, Path],
    data: Sequence[tuple[Tensor, ...]],
    evaluate: Evaluate | None = None,
) -> CheckResult:
    """Check every stage of a lowering.

    Args:
        captured: the program the float passes started from.
        program: what was lowered.
        steps: the float passes.
        backend: whose runner runs the files.
        files: kind ("float", "int8") -> file.
        data: batches for the fidelity check; the example inputs if empty.
        evaluate: the user's metric.

    Returns:
        One check per stage and input size.

    Raises:
        FuseqError: FQ013 for a file its runtime cannot load.
    """
    fused = program.clone()
    fused.quantization = None
    start, same = split_by_promise(steps, captured)
    # A program that was rewritten before is its own reference, and with no step left there is
    # nothing to compare.
    checks = [_trained_vs_fused_f64(start, same)] if same or not captured.history else []
    checks += _float32(start, fused, backend.runner(files["float"]) if "float" in files else None)
    divergence: Divergence | None = None
    if program.quantization is not None:
        runner = backend.runner(files["int8"]) if "int8" in files else None
        checks.append(
            _quantized_fidelity(fused, program, data or [program.example_inputs], evaluate, runner)
        )
        if runner and runner.parameters():
            check, divergence = table_parity(program, runner)
            checks.append(check)
        fitting = [inputs for inputs in sizes(program) if runner and _fits(runner, inputs)]
        for inputs in fitting:
            assert runner is not None
            check, first = file_parity(program, runner, inputs)
            checks.append(check)
            divergence = divergence or first
    return CheckResult(tuple(checks), divergence)


def _fits(runner: Runner, inputs: tuple[Tensor, ...]) -> bool:
    """Whether a file takes inputs of these shapes: one with fixed sizes takes only its own."""
    return all(
        len(shape) == x.dim()
        and all(n is None or n == m for n, m in zip(shape, x.shape, strict=True))
        for shape, x in zip(runner.shapes, inputs, strict=True)
    )


def sizes(program: Program) -> list[tuple[Tensor, ...]]:
    """Float32 inputs at the captured size and, if sizes are free, at another one.

    Values are drawn between the example inputs' extremes, so that they look like inputs. Frames
    past `LARGE` pixels are replaced by small ones where sizes are free: every integer of every
    value is held in memory, and borders and interiors are the same at any size.
    """
    generator = torch.Generator().manual_seed(1)
    free = set(program.origin.dynamic)
    captured = [list(x.shape) for x in program.example_inputs]
    steps = [{0: 1, 2: 32, 3: 64}, {0: 1}]
    if any(len(s) == 4 and s[2] * s[3] > LARGE for s in captured) and (0, 2) in free:
        captured = [
            [min(n, 32 * (d + 4)) if (i, d) in free else n for d, n in enumerate(shape)]
            for i, shape in enumerate(captured)
        ]
    grown = (
        [
            [n + step.get(d, 0) * ((i, d) in free) for d, n in enumerate(shape)]
            for i, shape in enumerate(captured)
        ]
        for step in steps
    )
    found = [shapes for shapes in (captured, *grown) if verify.takes(program, shapes)]
    distinct = [shapes for k, shapes in enumerate(found) if shapes not in found[:k]][:2]
    return [
        program.example_inputs
        if all(tuple(s) == x.shape for s, x in zip(shapes, program.example_inputs, strict=True))
        else tuple(
            _like(x, shape, generator)
            for shape, x in zip(shapes, program.example_inputs, strict=True)
        )
        for shapes in distinct or [[list(x.shape) for x in program.example_inputs]]
    ]


def _like(example: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    low, high = example.min(), example.max()
    return low + (high - low) * torch.rand(shape, generator=generator).to(example.dtype)


def _trained_vs_fused_f64(start: Program, same: Sequence[Pass]) -> Check:
    """The user's own module in float64 against the float pipeline run on a float64 program.

    Where passes ran before (recalibration computes a new function on purpose, and a program may
    have been trained since it was fused), the reference is the program they gave.
    """
    twin = start.twin(torch.float64)
    fused = Pipeline(same, prove=False).run(twin)
    module = None if start.history else _in_float64(start.origin.module)
    expected, actual = [], []
    for inputs in verify.probe_inputs(start):
        reference = _run_if_possible(module, inputs) if module else None
        if reference is None:
            module = None
            reference = _run(twin.module, inputs)
        expected += reference
        actual += _run(fused.module, inputs)
    pair = f"{'trained' if module else 'given'} <-> fused (float64)"
    if _narrows(twin):
        note = "the model itself computes in float32 at places"
        return exact("fused-f64", pair, expected, actual, max_rel=FLOAT32_FORMS, note=note)
    check = exact("fused-f64", pair, expected, actual, max_rel=EXACT_F64)
    if check.passed or module is None:
        return check
    # What a model computes from its parameters alone was rounded to float32 at capture.
    wide = capture(module, twin.example_inputs, front_end=start.origin.front_end)
    fused = Pipeline(same, prove=False).run(wide)
    actual = [y for inputs in verify.probe_inputs(start) for y in _run(fused.module, inputs)]
    return exact("fused-f64", pair, expected, actual, max_rel=EXACT_F64)


def _narrows(twin: Program) -> bool:
    """Whether a float64 program has values of a narrower float: the model casts them itself."""
    shapes.propagate(twin)
    kinds = {node.meta["dtype"] for node in twin.graph.nodes if "dtype" in node.meta}
    return any(kind.is_floating_point and kind != torch.float64 for kind in kinds)


def _run_if_possible(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[np.ndarray] | None:
    """Outputs, or None where the module builds float32 tensors inside and cannot mix them."""
    try:
        return _run(module, inputs)
    except RuntimeError:
        return None


def _in_float64(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).double().eval()


def _float32(start: Program, fused: Program, runner: Runner | None) -> list[Check]:
    """Float32 forms against float64 truth, each held to what rounding explains."""
    twin = start.twin(torch.float64)
    truth: list[np.ndarray] = []
    ours: list[np.ndarray] = []
    theirs: list[np.ndarray] = []
    allowed: list[float] = []
    for inputs in sizes(fused):
        wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
        exact_outputs = _run(twin.module, wide)
        truth += exact_outputs
        ours += _run(fused.module, inputs)
        allowed += relative_limits(float32_bound(inputs, fused), exact_outputs)
        if runner and _fits(runner, inputs):
            theirs += [np.asarray(y) for y in runner(*(x.numpy() for x in inputs))]
    checks = [exact("fused-f32", "float64 <-> fused (float32)", truth, ours, max_rel=allowed)]
    if runner:
        pair = f"float64 <-> float file ({runner.runtime})"
        known = len(theirs)
        checks.append(
            exact(
                "float-file", pair, truth[:known], theirs, max_rel=allowed[:known], note=runner.note
            )
        )
    return checks


def _quantized_fidelity(
    fused: Program,
    program: Program,
    data: Sequence[tuple[Tensor, ...]],
    evaluate: Evaluate | None,
    runner: Runner | None,
) -> Check:
    expected = [y for inputs in data for y in _run(fused.module, inputs)]
    actual = [y for inputs in data for y in _run(program, inputs)]
    extra: dict[str, float] = {}
    if evaluate is not None:
        before = metrics_of(evaluate, lambda x: _run(fused.module, (torch.from_numpy(x),))[0])
        after = metrics_of(
            evaluate, lambda x: _deployed(program, runner, (torch.from_numpy(x),))[0]
        )
        for name, value in before.items():
            extra[name] = value
            if after[name] != value:
                extra[f"{name}_int8"] = after[name]
                extra[f"{name}_drop"] = value - after[name]
    return fidelity("int8-vs-float", "fused (float32) <-> quantized", expected, actual, extra=extra)


def metrics_of(evaluate: Evaluate, run: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """The user's metrics of a function from NCHW array to NCHW array.

    Raises:
        FuseqError: FQ003 if the user's code raises.
    """
    with user_code("evaluate(run)"):
        return {str(name): float(value) for name, value in evaluate(run).items()}


def _deployed(
    program: Program, runner: Runner | None, inputs: tuple[Tensor, ...]
) -> list[np.ndarray]:
    """Float outputs of the shipped file, or of our executor where no runtime is at hand."""
    if runner is None:
        return _run(program, inputs)
    interface = _interface(program)
    arrays = tuple(x.numpy() for x in inputs)
    return interface.reals(runner(*interface.feeds(runner, arrays)))


def _interface(program: Program) -> Interface:
    assert program.quantization is not None
    grids = program.quantization.grids
    return Interface(
        tuple(grids.get(node.name) for node in program.inputs()),
        tuple(grids.get(node.name) for node in program.outputs()),
    )


def _is_integer(array: np.ndarray) -> bool:
    return bool(np.issubdtype(array.dtype, np.integer))


def file_parity(
    program: Program, runner: Runner, inputs: tuple[Tensor, ...]
) -> tuple[Check, Divergence | None]:
    """Every integer the runtime computes against our executor's, as `integer_parity` compares them.

    Args:
        program: quantized.
        runner: of the int8 file.
        inputs: float32, fed to both.

    Returns:
        The check, and the first value in execution order that breaks its gate.
    """
    assert program.quantization is not None
    interface = _interface(program)
    feeds = interface.feeds(runner, tuple(x.numpy() for x in inputs))
    shown = dict(runner.integers(*feeds))
    # The outputs come from the file as it ships, not from the copy that shows its integers.
    outputs = zip(program.outputs(), interface.outputs, runner(*feeds), strict=True)
    for node, grid, output in outputs:
        if grid is not None:
            real = torch.from_numpy(output)
            shown[node.name] = output if _is_integer(output) else grid.quantize(real).numpy()
    size = "x".join(map(str, inputs[0].shape))
    pair = f"{program.quantization.profile.arithmetic} executor <-> {runner.runtime}"
    return integer_parity(f"parity-{size}", pair, program, shown, inputs, note=runner.note)


def integer_parity(
    id: str,
    pair: str,
    program: Program,
    shown: Mapping[str, np.ndarray],
    inputs: tuple[Tensor, ...],
    *,
    note: str = "",
) -> tuple[Check, Divergence | None]:
    """Integers that something computed against our executor's, op by op.

    Each op of ours starts from the integers shown, so one difference is counted once, where it
    arises. Integer ops must agree in every value. An op that runs in float on both sides (a float
    island that ends in a quantizer, a convolution that reads or makes 16 bits) depends on how each
    adds and rounds floats: it may differ by one step, and is counted apart.

    Args:
        id: name of the check.
        pair: what is compared, for people.
        program: quantized.
        shown: integers by value name.
        inputs: float32, which they were computed from.
        note: remark to keep with the result.

    Returns:
        The check, and the first value in execution order that breaks its gate.
    """
    given = {name: torch.from_numpy(np.asarray(q).astype(np.int32)) for name, q in shown.items()}
    execution = execute(program, inputs, given=given)
    common = [node for node in program.graph.nodes if node.name in execution.integers]
    common = [node for node in common if node.name in shown]
    steps = {
        node.name: _largest_step(execution.integers[node.name].numpy(), shown[node.name])
        for node in common
    }
    exact_names = [node.name for node in common if node.name not in execution.rounded]
    check = parity(
        id,
        pair,
        [execution.integers[name].numpy() for name in exact_names],
        [shown[name] for name in exact_names],
        rounded={name: steps[name] for name in steps if name in execution.rounded},
        note=note,
    )
    wrong = [n for n in common if steps[n.name] > (1 if n.name in execution.rounded else 0)]
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
    if ours.shape != theirs.shape:
        return 2**31
    return int(np.abs(ours.astype(np.int64) - theirs.astype(np.int64)).max(initial=0))


def _run(model: Callable[..., Any], inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    with torch.no_grad():
        leaves = pytree.tree_leaves(model(*inputs))
    return [_array(leaf) for leaf in leaves if isinstance(leaf, Tensor)]


def _array(tensor: Tensor) -> np.ndarray:
    """A tensor's values; numpy has no bfloat16."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
