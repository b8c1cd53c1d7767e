"""`lower`: a model to a checked bundle for one backend."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from fuseq import plugins
from fuseq.api import Progress, captured, run_passes
from fuseq.arguments import ExampleInputs, as_tuple
from fuseq.backend import Backend
from fuseq.bundle import Bundle, require_writable, staged, write_manifest
from fuseq.equivalence.bundles import golden_check
from fuseq.equivalence.lowered import check_lowered
from fuseq.equivalence.result import CheckResult
from fuseq.equivalence.sides import side_of
from fuseq.errors import FuseqError
from fuseq.fixed_size import at_size
from fuseq.large_images import for_any_image
from fuseq.lineage import lineage_of, write_lineage
from fuseq.manifest import (
    PROGRAM,
    describe_calibration,
    describe_checks,
    describe_lowering,
    write_golden,
    write_lowered,
    write_sample,
)
from fuseq.pass_spec import parse_passes, with_options
from fuseq.program import Program
from fuseq.quant.calibrate import batches_of, repeatable
from fuseq.rewrite import Pass

CHECK_BATCHES = 2
"""How many calibration batches the fidelity check runs on."""


def lower(
    model: nn.Module | Program,
    example_inputs: ExampleInputs | None = None,
    *,
    backend: str | Backend = "onnx",
    out: str | Path,
    calibration: Iterable[Any] | None = None,
    passes: str | None = None,
    observer: str | None = None,
    evaluate: Callable[[Callable[[np.ndarray], np.ndarray]], Mapping[str, float]] | None = None,
    check: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Lower a model to a bundle, and check what was written.

    Args:
        model: a module; or a program, float or quantized, whose remaining passes run; or a model
            prepared for training, which is finalized.
        example_inputs: what to capture a module with; for a program and a file of one size, inputs
            of that size, by default those it was captured with.
        backend: name of a backend, or one with options.
        out: directory of the bundle.
        calibration: batches of inputs, read several times; an iterator is read into memory first.
            `origin` and `synthetic` attributes, if it has them, go into the manifest.
        passes: instead of the backend's own pipeline.
        observer: how ranges are measured, instead of what `passes` says.
        evaluate: the user's metric; called with a function from NCHW array to NCHW array.
        check: compare every stage with the one before (`Bundle.result`).
        force: replace an existing bundle.
        progress: called as stages advance.

    Returns:
        The bundle. A failed check does not raise: ask `bundle.result.raise_for_status()`.

    Raises:
        FuseqError: FQ006 without calibration data, FQ008 for an output that cannot be written,
            FQ405 for a program quantized for another target, FQ501 for ops the backend cannot
            lower, and whatever capture and passes raise. Nothing is then written, and an older
            bundle is as it was.
    """
    out = Path(out)
    require_writable(out, force)
    target = plugins.load("backends", backend)() if isinstance(backend, str) else backend
    data = repeatable(calibration)
    if isinstance(model, nn.Module):
        from fuseq.qat.model import shipped

        model = shipped(model)
    start, frame = _start(model, example_inputs, target, progress)
    _require_target(start, target)
    steps = _steps(target, passes, observer, data)
    if start.quantization is not None:
        steps = []
    elif any(step.name == "quantize" for step in steps) and data is None:
        raise FuseqError(
            "FQ006",
            "int8 needs calibration data, and there is none",
            fix="--calib DIR (images), FILE.npz, or calibration_data() in the model file; "
            "--passes fuse-affine for a float bundle",
        )
    before_data = float_steps(steps)
    program = run_passes(before_data, start, progress)
    target.require_lowerable(program)  # before calibration takes its time
    program = run_passes(steps[len(before_data) :], program, progress)
    target.require_lowerable(program)
    written = program if frame is None else at_size(program, frame)
    if progress:
        progress("lower", 0)
    with staged(out, force) as stage:
        artifacts = target.lower(written, stage)
        kinds = {artifact.path: artifact.kind for artifact in artifacts}
        files = {artifact.kind: stage / artifact.path for artifact in artifacts}
        result: CheckResult | None = None
        float_ops: Mapping[str, int] | None = None
        if check:
            if progress:
                progress("check", 0)
            if "int8" in files:
                float_ops = target.runner(files["int8"]).float_ops()
            with _checked_files(target, program, files, frame is None) as checked:
                result = check_lowered(
                    start, program, before_data, target, checked, _probes(program, data), evaluate
                )
            if "int8" in files:
                result = result.with_more(target.checks(written, stage))
        rounded = write_golden(written, stage / "golden.npz")
        kinds["golden.npz"] = "golden"
        note = write_lowered(written, stage / PROGRAM)
        kinds |= {} if note else {PROGRAM: "program"}
        if data is not None:
            write_sample(program, data, stage / "sample.npz")
            kinds["sample.npz"] = "sample"
        before = start if frame is None else at_size(start, frame)
        write_lineage(lineage_of(before, written), stage / "lineage.json")
        kinds["lineage.json"] = "lineage"
        content = describe_lowering(
            before,
            written,
            None if data is None else describe_calibration(program, data),
            result,
            float_ops,
            target,
            rounded,
        )
        content["backend"] = target.name
        content["notes"] += [note] if note else []
        manifest = write_manifest(stage, kinds, content)
        if result and frame is not None:
            once = golden_check(Bundle(stage, manifest), side_of(files.get("int8", files["float"])))
            once = replace(once, pair="golden outputs <-> files at their own size")
            result = result.with_more([(once, None)])
            manifest = write_manifest(stage, kinds, {**content, "checks": describe_checks(result)})
    return Bundle(out, manifest, result, written)


def _start(
    model: nn.Module | Program,
    example_inputs: ExampleInputs | None,
    target: Backend,
    progress: Progress | None,
) -> tuple[Program, tuple[Tensor, ...] | None]:
    """The program to run passes on, and the inputs that it is written for if those are larger.

    Files of one size are written from a program of one size. Where images are large and the program
    is the same at any size, it gets that size last: what is proved, calibrated and checked before
    takes small ones.
    """
    module = model.origin.module if isinstance(model, Program) else model
    given = model.example_inputs if isinstance(model, Program) else None
    inputs = given if example_inputs is None else example_inputs
    if not target.fixed_size or inputs is None:
        return captured(model, inputs, progress=progress), None
    if progress and module is model:
        progress("capture", 0)
    frame = as_tuple(module, inputs)
    start = for_any_image(model, frame)
    if start is not None:
        return start, frame
    start = captured(model, frame, dynamic=False)
    return at_size(start, frame) if start.origin.dynamic else start, None


@contextlib.contextmanager
def _checked_files(
    target: Backend, program: Program, files: Mapping[str, Path], fitting: bool
) -> Iterator[Mapping[str, Path]]:
    """Files of a program that take its inputs, by kind: those given, or others like them."""
    if fitting:
        yield files
        return
    if target.known_chips:
        target = replace(target, chips=())  # type: ignore[type-var]
    with tempfile.TemporaryDirectory(prefix="fuseq.small.") as place:
        artifacts = target.lower(at_size(program), Path(place))
        yield {artifact.kind: Path(place) / artifact.path for artifact in artifacts}


def _require_target(program: Program, target: Backend) -> None:
    table = program.quantization
    if table is not None and table.profile.name != target.profile.name:
        raise FuseqError(
            "FQ405",
            f"the program was quantized for '{table.profile.name}', not '{target.profile.name}'",
            fix=f"target='{target.profile.name}' in prepare or quantize",
        )


def float_steps(steps: Sequence[Pass]) -> list[Pass]:
    """The passes of a pipeline that come before quantization."""
    names = [step.name for step in steps]
    return list(steps[: names.index("quantize")]) if "quantize" in names else list(steps)


def _steps(
    target: Backend, passes: str | None, observer: str | None, data: Iterable[Any] | None
) -> list[Pass]:
    steps = parse_passes(
        target.pipeline if passes is None else passes, profile=target.profile, calibration=data
    )
    return with_options(steps, "quantize", observer=observer) if observer else steps


def _probes(program: Program, data: Iterable[Any] | None) -> list[tuple[Tensor, ...]]:
    return [] if data is None else list(itertools.islice(batches_of(program, data), CHECK_BATCHES))
