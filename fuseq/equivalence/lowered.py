"""The checks `lower` runs: trained -> fused -> quantized -> file, each against the one before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
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
    relative_limits,
)
from fuseq.equivalence.integers import file_parity, table_parity
from fuseq.equivalence.interfaces import interface_of
from fuseq.equivalence.result import Check, CheckResult, Divergence
from fuseq.memory import free_clones
from fuseq.program import Program
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
    free_clones(start)
    checks += _float32(start, fused, backend.runner(files["float"]) if "float" in files else None)
    free_clones(start)
    divergence: Divergence | None = None
    if program.quantization is not None:
        runners = backend.runners(files["int8"]) if "int8" in files else {}
        runner = next(iter(runners.values()), None)
        checks.append(
            _quantized_fidelity(fused, program, data or [program.example_inputs], evaluate, runner)
        )
        if runner and runner.parameters():
            check, divergence = table_parity(program, runner)
            checks.append(check)
        tried = sizes(program) if runners else []
        for arithmetic, each in runners.items():
            for inputs in (inputs for inputs in tried if _fits(each, inputs)):
                check, first = file_parity(program, each, inputs, arithmetic)
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
    if runner is None or not _fits(runner, inputs):
        return _run(program, inputs)
    interface = interface_of(program)
    arrays = tuple(x.numpy() for x in inputs)
    return interface.reals(runner(*interface.feeds(runner, arrays)))


def _run(model: Callable[..., Any], inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    with torch.no_grad():
        leaves = pytree.tree_leaves(model(*inputs))
    return [_array(leaf) for leaf in leaves if isinstance(leaf, Tensor)]


def _array(tensor: Tensor) -> np.ndarray:
    """A tensor's values; numpy has no bfloat16."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
