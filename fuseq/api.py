"""`fuse` and `quantize`: the float and the integer half of the pipeline, as functions."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fuseq import ops, plugins, verify
from fuseq.affine.prove import Certificate
from fuseq.affine.refusal import Refusal
from fuseq.arguments import ExampleInputs
from fuseq.errors import FuseqError
from fuseq.macs import total_macs
from fuseq.pass_spec import parse_passes, with_options
from fuseq.program import Program
from fuseq.quant.calibrate import repeatable
from fuseq.quant.sensitivity import Form
from fuseq.rewrite import Pass, Pipeline, split_by_promise
from fuseq.rounding import float32_bound
from fuseq.statistics import statistics_warnings
from fuseq.tracing import capture

Progress: TypeAlias = Callable[[str, int], None]
"""Called with a stage ("capture", the name of a pass, "check") and how much of it is done."""


def fuse(
    model: nn.Module | Program,
    example_inputs: ExampleInputs | None = None,
    *,
    passes: str = "fuse-affine",
    calibration: Iterable[Any] | None = None,
    front_end: str = "auto",
    prove: bool = True,
    progress: Progress | None = None,
) -> Program:
    """Fuse every linear multi-branch region of a model into one convolution.

    Args:
        model: any module, or a program captured before.
        example_inputs: what to capture it with; not needed for a program.
        passes: the float pipeline; put `recalibrate-bn` first to refresh stale statistics.
        calibration: data for passes that need some, read several times; an iterator is read into
            memory first.
        front_end: as `fuseq.capture`.
        prove: hold every pass to its promise.
        progress: called as stages advance.

    Returns:
        A program that is called like the model. Its `report` holds what `fuseq fuse --json`
        prints: op counts, errors, regions, refusals.

    Raises:
        FuseqError: as `fuseq.capture` and the passes raise.
    """
    start = time.perf_counter()
    before = captured(model, example_inputs, front_end, progress)
    steps = parse_passes(passes, calibration=repeatable(calibration))
    program = run_passes(steps, before, progress, prove)
    if progress:
        progress("check", 0)
    error64, error32, bound32 = fusion_error(before, program, steps)
    program.report = {
        **structure_counts(before, program),
        "capture": before.origin.front_end,
        "notes": list(before.origin.notes),
        "warnings": fusion_warnings(before, program),
        "max_rel_error_f64": error64,
        "max_abs_error_f32": error32,
        "float32_bound": bound32,
        "regions": [dataclasses.asdict(region) for region in program.details(Certificate)],
        "refused": [dataclasses.asdict(refusal) for refusal in program.details(Refusal)],
        "seconds": round(time.perf_counter() - start, 3),
    }
    return program


def quantize(
    model: nn.Module | Program,
    example_inputs: ExampleInputs | None = None,
    *,
    target: str = "onnx",
    calibration: Iterable[Any],
    observer: str = "minmax",
    keep: Sequence[str] = (),
    wide: Sequence[str] = (),
    activation: str | None = None,
    per_channel: bool | None = None,
    worst: int = 0,
    worst_as: Form = "int16",
    progress: Progress | None = None,
) -> Program:
    """Quantize a model for a target; a module is captured and fused first.

    Args:
        model: a module, or a fused program.
        example_inputs: what to capture a module with.
        target: name of a backend; its profile says what becomes an integer.
        calibration: batches of inputs, seen once; three times with `worst`, for which an iterator
            is read into memory first.
        observer: minmax, moving-average, percentile or mse.
        keep: names of nodes that stay float.
        wide: names of nodes whose values have 16 bits.
        activation: dtype of activations, of those the target has; by default its first.
        per_channel: whether weights have one scale per output channel; by default what the target
            has.
        worst: how many parts, of those that cost most when quantized alone, do not get 8 bits.
        worst_as: what they get instead: float, or int16, which only values can have.
        progress: called as stages advance.

    Returns:
        A program whose call runs the target's integers.

    Raises:
        FuseqError: FQ007 for an unknown target, observer or node, FQ012 for what the target does
            not have, FQ006 for data that is empty or does not fit, FQ401 for a value that cannot be
            quantized, and as `fuse` raises.
    """
    fused = model if isinstance(model, Program) else fuse(model, example_inputs, progress=progress)
    profile = plugins.load("backends", target).profile
    data = repeatable(calibration) if worst else calibration
    steps = parse_passes("legalize,quantize", profile=profile, calibration=data)
    steps = with_options(
        steps,
        "quantize",
        observer=observer,
        keep=tuple(keep),
        wide=tuple(wide),
        activation=activation,
        per_channel=per_channel,
        worst=worst,
        worst_as=worst_as,
    )
    return run_passes(steps, fused, progress)


def captured(
    model: nn.Module | Program,
    example_inputs: ExampleInputs | None,
    front_end: str = "auto",
    progress: Progress | None = None,
    dynamic: bool = True,
) -> Program:
    """A program as it is, or a module captured.

    Raises:
        FuseqError: FQ005 for a module without example inputs.
    """
    if isinstance(model, Program):
        return model
    if example_inputs is None:
        raise FuseqError(
            "FQ005", "a module needs example inputs", fix="pass a tensor shaped like its input"
        )
    if progress:
        progress("capture", 0)
    return capture(model, example_inputs, front_end=front_end, dynamic=dynamic)


def run_passes(
    steps: Sequence[Pass], program: Program, progress: Progress | None, prove: bool = True
) -> Program:
    """Run passes, reporting each as a stage, and its own progress where it has a field for it."""
    if progress is None:
        return Pipeline(steps, prove).run(program)
    reported = [_reporting(step, progress) for step in steps]
    return Pipeline(reported, prove, lambda step: progress(step.name, 0)).run(program)


def _reporting(step: Pass, progress: Progress) -> Pass:
    if not any(f.name == "progress" for f in dataclasses.fields(step)):  # type: ignore[arg-type]
        return step
    report = lambda done: progress(step.name, done)  # noqa: E731
    return dataclasses.replace(step, progress=report)  # type: ignore[type-var]


def fusion_error(
    before: Program, after: Program, steps: Sequence[Pass]
) -> tuple[float, float, float]:
    """How far the rewrites that promise the same function moved the outputs.

    The float64 error is that of the whole pipeline run again on a float64 twin with the real
    weights; steps that compute a new function are taken as given, on both sides.

    Returns:
        Largest relative error in float64; largest absolute error in float32, on the first and
        smallest of the inputs, and the most that rounding explains there.
    """
    before, same = split_by_promise(steps, before)
    probes = verify.probe_inputs(before)
    twin = before.in_dtype(torch.float64)
    fused_twin = Pipeline(same, prove=False).run(twin)
    error64 = verify.distance(twin, fused_twin, probes)
    floats = tuple(x.float() if x.is_floating_point() else x for x in probes[0])
    forms = (verify.outputs(form.in_dtype(torch.float32), floats) for form in (after, before))
    error32 = max((_largest_difference(a, b) for a, b in zip(*forms, strict=True)), default=0.0)
    return error64, error32, max(float32_bound(floats, twin, fused_twin), default=0.0)


def _largest_difference(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0


def fusion_warnings(before: Program, after: Program) -> list[dict[str, Any]]:
    """What looks wrong with the batch norms that were folded, unless a pass recomputed them."""
    if any(record.name.startswith("recalibrate-bn") for record in after.history):
        return []
    return [
        {**dataclasses.asdict(warning), "nodes": list(warning.nodes)}
        for warning in statistics_warnings(before)
    ]


def structure_counts(before: Program, after: Program) -> dict[str, dict[str, int]]:
    """Convolutions, batch norms, parameters and multiply-accumulates, before and after."""
    return {
        "ops": {
            "conv_before": ops.count(before, "conv2d"),
            "conv_after": ops.count(after, "conv2d"),
            "bn_before": ops.count(before, "batch_norm", "batch_norm1d"),
            "bn_after": ops.count(after, "batch_norm", "batch_norm1d"),
        },
        "parameters": {"before": _parameters(before), "after": _parameters(after)},
        "macs": {"before": total_macs(before), "after": total_macs(after)},
    }


def _parameters(program: Program) -> int:
    return sum(p.numel() for p in program.module.parameters())
