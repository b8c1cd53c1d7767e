"""`lower`: a model to a checked bundle for one backend."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fuseq import plugins
from fuseq.api import Progress, captured, structure_counts, tracked
from fuseq.backend import Backend
from fuseq.bundle import Bundle, require_writable, staged, write_manifest
from fuseq.equivalence.lowered import check_lowered, sizes
from fuseq.equivalence.result import CheckResult
from fuseq.errors import FuseqError
from fuseq.pass_spec import parse_passes
from fuseq.program import Program
from fuseq.quant.calibrate import batches_of
from fuseq.rewrite import Pass, Pipeline

CHECK_BATCHES = 2
"""How many calibration batches the fidelity check runs on."""


@dataclass(frozen=True)
class Calibration:
    """Calibration data as `lower` uses it: batches in memory order, and what to record of them.

    Attributes:
        batches: tuples of input tensors.
        origin: where they came from, as the manifest records it.
        synthetic: whether they are random numbers the user asked for.
    """

    batches: tuple[tuple[Tensor, ...], ...]
    origin: str = "given"
    synthetic: bool = False

    def digest(self) -> str:
        """sha256 over the values, shapes and order of the batches."""
        digest = hashlib.sha256()
        for tensor in itertools.chain.from_iterable(self.batches):
            digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


def lower(
    model: nn.Module | Program,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
    *,
    backend: str | Backend = "onnx",
    out: str | Path,
    calibration: Iterable[Any] | Calibration | None = None,
    passes: str | None = None,
    observer: str = "minmax",
    evaluate: Callable[[Callable[[np.ndarray], np.ndarray]], Mapping[str, float]] | None = None,
    check: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Lower a model to a bundle, and check what was written.

    Args:
        model: a module; or a program, float or quantized, whose remaining passes run.
        example_inputs: what to capture a module with.
        backend: name of a backend, or one with options.
        out: directory of the bundle.
        calibration: batches of inputs; without them the bundle holds float files only.
        passes: instead of the backend's own pipeline.
        observer: how ranges are measured, where `passes` does not say.
        evaluate: the user's metric; called with a function from NCHW array to NCHW array.
        check: compare every stage with the one before (`Bundle.result`).
        force: replace an existing bundle.
        progress: called as stages advance.

    Returns:
        The bundle. A failed check does not raise: ask `bundle.result.raise_for_status()`.

    Raises:
        FuseqError: FQ006 without calibration data, FQ008 for an output that cannot be written,
            FQ501 for ops the backend cannot lower, and whatever capture and passes raise. Nothing
            is then written, and an older bundle is as it was.
    """
    out = Path(out)
    require_writable(out, force)
    target = plugins.load("backends", backend)() if isinstance(backend, str) else backend
    data = _in_memory(calibration)
    start = captured(model, example_inputs, progress=progress)
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
    program = Pipeline(tracked(before_data, progress)).run(start)
    target.require_lowerable(program)  # before calibration takes its time
    program = Pipeline(tracked(steps[len(before_data) :], progress)).run(program)
    target.require_lowerable(program)
    if progress:
        progress("lower", 0)
    with staged(out, force) as stage:
        artifacts = target.lower(program, stage)
        kinds = {artifact.path: artifact.kind for artifact in artifacts}
        files = {artifact.kind: stage / artifact.path for artifact in artifacts}
        result: CheckResult | None = None
        float_ops: Mapping[str, int] | None = None
        if check:
            if progress:
                progress("check", 0)
            if "int8" in files:
                float_ops = target.runner(files["int8"]).float_ops()
            result = check_lowered(
                start, program, float_steps(steps), target, files, _probes(data), evaluate
            )
        _write_golden(program, stage / "golden.npz")
        kinds["golden.npz"] = "golden"
        content = _content(start, program, target, data, result)
        content["runtime_float_ops"] = float_ops
        manifest = write_manifest(stage, kinds, content)
    return Bundle(out, manifest, result)


def float_steps(steps: Sequence[Pass]) -> list[Pass]:
    """The passes of a pipeline that come before quantization."""
    names = [step.name for step in steps]
    return list(steps[: names.index("quantize")]) if "quantize" in names else list(steps)


def _steps(
    target: Backend, passes: str | None, observer: str, data: Calibration | None
) -> Sequence[Pass]:
    pipeline = passes or target.pipeline
    if "quantize{" not in pipeline:
        pipeline = pipeline.replace("quantize", f'quantize{{observer="{observer}"}}')
    batches = data.batches if data else None
    return parse_passes(pipeline, profile=target.profile, calibration=batches)


def _in_memory(calibration: Iterable[Any] | Calibration | None) -> Calibration | None:
    if calibration is None or isinstance(calibration, Calibration):
        return calibration
    return Calibration(tuple(batches_of(calibration)))


def _probes(data: Calibration | None) -> list[tuple[Tensor, ...]]:
    return list(data.batches[:CHECK_BATCHES]) if data else []


def _write_golden(program: Program, file: Path) -> None:
    """Inputs and what the program makes of them, for checks without the model.

    The example inputs, or smaller ones of their kind where those are large frames.
    """
    inputs = sizes(program)[0]
    with torch.no_grad():
        outputs = pytree.tree_leaves(program(*inputs))
    arrays = {f"input.{n}": x for n, x in zip(program.input_names, inputs, strict=True)}
    arrays |= {f"output.{n}": y for n, y in zip(program.output_names, outputs, strict=True)}
    np.savez_compressed(file, **{name: tensor.numpy() for name, tensor in arrays.items()})  # type: ignore[arg-type]


def _content(
    start: Program,
    program: Program,
    target: Backend,
    data: Calibration | None,
    result: CheckResult | None,
) -> dict[str, Any]:
    """What the manifest says beyond its files. Measured floats stay out: they are not bytes."""
    islands = [
        name
        for record in program.history
        for d in record.details
        for name in getattr(d, "islands", ())
    ]
    return {
        **structure_counts(start, program),
        "backend": target.name,
        "capture": program.origin.front_end,
        "notes": list(program.origin.notes),
        "passes": [{"name": r.name, "rewrites": r.rewrites} for r in program.history],
        "calibration": data
        and {
            "origin": data.origin,
            "batches": len(data.batches),
            "sha256": data.digest(),
            "synthetic": data.synthetic,
        },
        "inputs": _interface(program, program.inputs(), program.input_names),
        "outputs": _interface(program, program.outputs(), program.output_names),
        "float_islands": islands,
        "checks": [
            {"id": c.id, "pair": c.pair, "class": c.kind, "passed": c.passed}
            for c in (result.checks if result else ())
        ],
    }


def _interface(
    program: Program, nodes: Sequence[torch.fx.Node], names: Sequence[str]
) -> list[dict[str, Any]]:
    described = []
    for index, (name, node) in enumerate(zip(names, nodes, strict=True)):
        shape = list(program.shape(node))
        entry: dict[str, Any] = {
            "name": name,
            "shape": shape,
            "dtype": str(node.meta["dtype"]).removeprefix("torch."),
            "layout": "NCHW" if len(shape) == 4 else None,
        }
        if node.op == "placeholder":
            entry["free"] = [d for i, d in program.origin.dynamic if i == index]
        grid = program.quantization and program.quantization.grids.get(node.name)
        if grid:
            scale, zero_point = float(grid.scale), int(grid.zero_point)
            entry["grid"] = {"dtype": grid.dtype, "scale": scale, "zero_point": zero_point}
        described.append(entry)
    return described
