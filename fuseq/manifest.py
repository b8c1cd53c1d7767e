"""What a bundle says of itself: how its files came about, its interface, and recorded outputs.

Nothing measured in floats is in here: a manifest is bytes that must come out the same twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fuseq.api import fusion_warnings, structure_counts
from fuseq.backend import Backend
from fuseq.equivalence.lowered import sizes
from fuseq.equivalence.result import CheckResult
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.program_file import write_program
from fuseq.quant.calibrate import batches_of
from fuseq.quant.executor import execute
from fuseq.verify import takes

PROGRAM = "program.safetensors"

SAMPLE_SIDE = 256
"""Largest height and width of an image kept for reports, which hold every value of it in memory."""


def describe_lowering(
    captured: Program,
    program: Program,
    calibration: Mapping[str, Any] | None,
    result: CheckResult | None,
    runtime_float_ops: Mapping[str, int] | None,
    target: Backend,
    rounded: Collection[str],
) -> dict[str, Any]:
    """How a program came about, as the manifest tells it.

    Args:
        captured: before any pass.
        program: what was lowered.
        calibration: the data, as `describe_calibration` does; None without.
        result: of the checks, if they ran.
        runtime_float_ops: ops that the runtime computes in float, with their number, if known.
        target: the backend that wrote the files.
        rounded: names of the program's values that were rounded from floats.
    """
    islands = [
        name
        for record in program.history
        for detail in record.details
        for name in getattr(detail, "islands", ())
    ]
    return {
        **structure_counts(captured, program),
        "capture": program.origin.front_end,
        "notes": list(program.origin.notes),
        "warnings": fusion_warnings(captured, program),
        "passes": [{"name": r.name, "rewrites": r.rewrites} for r in program.history],
        "calibration": calibration,
        "inputs": _interface(program, program.inputs(), program.input_names, target),
        "outputs": _outputs(program, target, rounded),
        "float_islands": islands,
        "runtime_float_ops": None if runtime_float_ops is None else dict(runtime_float_ops),
        "checks": describe_checks(result) if result else [],
    }


def describe_checks(result: CheckResult) -> list[dict[str, Any]]:
    """What was held, without the figures, which machines round differently."""
    return [
        {"id": c.id, "pair": c.pair, "class": c.kind, "passed": c.passed} for c in result.checks
    ]


def describe_calibration(program: Program, calibration: Iterable[Any]) -> dict[str, Any]:
    """Origin, number of batches and a sha256 over their shapes, dtypes and values, in order."""
    digest, count = hashlib.sha256(), 0
    for batch in batches_of(program, calibration):
        count += 1
        for tensor in batch:
            digest.update(str((tuple(tensor.shape), tensor.dtype)).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return {
        "origin": getattr(calibration, "origin", "given"),
        "batches": count,
        "sha256": digest.hexdigest(),
        "synthetic": getattr(calibration, "synthetic", False),
    }


def write_golden(program: Program, file: Path) -> frozenset[str]:
    """Inputs and what the program makes of them, for checks without the model.

    The example inputs, or smaller ones of their kind where those are large frames.

    Returns:
        Names of values that were rounded from floats, which machines do differently.
    """
    inputs = sizes(program)[0]
    rounded: frozenset[str] = frozenset()
    if program.quantization is None:
        with torch.no_grad():
            outputs = pytree.tree_leaves(program(*inputs))
    else:
        execution = execute(program, inputs, intermediates=False)
        outputs, rounded = pytree.tree_leaves(execution.result), execution.rounded
    arrays = {f"input.{n}": x for n, x in zip(program.input_names, inputs, strict=True)}
    arrays |= {f"output.{n}": y for n, y in zip(program.output_names, outputs, strict=True)}
    np.savez_compressed(file, **{name: tensor.numpy() for name, tensor in arrays.items()})  # type: ignore[arg-type]
    return rounded


def write_lowered(program: Program, file: Path) -> str:
    """The program that was lowered, so that a bundle can be checked op by op without the model.

    Returns:
        A note for the manifest where the program has no file form; else the empty string.
    """
    try:
        write_program(program, file)
    except FuseqError as error:
        return f"{error.what}; checks of the bundle see its outputs only"
    return ""


def write_sample(program: Program, calibration: Iterable[Any], file: Path) -> None:
    """The first calibration input, so that a report shows values of the kind the model is for.

    One of a batch where its size is free; of an image larger than `SAMPLE_SIDE` its middle, where
    sizes are free.
    """
    inputs = next(batches_of(program, calibration))
    free = set(program.origin.dynamic)
    if all((i, 0) in free for i in range(len(inputs))):
        inputs = tuple(x[:1] for x in inputs)
    if len(inputs) == 1 and inputs[0].dim() == 4 and max(inputs[0].shape[2:]) > SAMPLE_SIDE:
        middle = _middle(inputs[0])
        if {(0, 2), (0, 3)} <= free and takes(program, [list(middle.shape)]):
            inputs = (middle,)
    arrays = {f"input.{n}": x.numpy() for n, x in zip(program.input_names, inputs, strict=True)}
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _middle(image: Tensor) -> Tensor:
    for dim in (2, 3):
        size = min(image.shape[dim], SAMPLE_SIDE)
        image = image.narrow(dim, (image.shape[dim] - size) // 2, size)
    return image


def _outputs(program: Program, target: Backend, rounded: Collection[str]) -> list[dict[str, Any]]:
    """Outputs; `rounded` says whether their integers depend on how a machine rounds floats."""
    described = _interface(program, program.outputs(), program.output_names, target)
    found = set(rounded)
    for node in program.graph.nodes:  # and what comes from such a value
        if any(source.name in found for source in node.all_input_nodes):
            found.add(node.name)
    for node, entry in zip(program.outputs(), described, strict=True):
        if "grid" in entry:
            entry["rounded"] = node.name in found
    return described


def _interface(
    program: Program, nodes: Sequence[fx.Node], names: Sequence[str], target: Backend
) -> list[dict[str, Any]]:
    described = []
    for index, (name, node) in enumerate(zip(names, nodes, strict=True)):
        shape = list(program.shape(node))
        image, last = len(shape) == 4, target.channels_last
        axes = (0, 2, 3, 1) if image and last else tuple(range(len(shape)))
        entry: dict[str, Any] = {
            "name": name,
            "shape": [shape[axis] for axis in axes],
            "dtype": str(node.meta["dtype"]).removeprefix("torch."),
            "layout": ("NHWC" if last else "NCHW") if image else None,
        }
        if node.op == "placeholder":
            free = [d for i, d in program.origin.dynamic if i == index]
            entry["free"] = sorted(axes.index(d) for d in free)
        grid = program.quantization and program.quantization.grids.get(node.name)
        if grid:
            edge = target.interface_grid(grid)
            grid = edge or grid
            scale, zero_point = float(grid.scale), int(grid.zero_point)
            entry["dtype"] = grid.dtype if edge else entry["dtype"]
            entry["grid"] = {"dtype": grid.dtype, "scale": scale, "zero_point": zero_point}
        described.append(entry)
    return described
