"""fuseq itself, at the same tasks: plain `quantize`, and `qat.prepare` as it is by default."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

import fuseq
import fuseq.qat
from benchmarks.peers.bed import Prepared, Run
from fuseq.program import Program

FILES = {"onnx": "model.int8.qdq.onnx", "tflite": "model.int8.tflite"}


def ptq(
    model: nn.Module,
    calibration: list[Tensor],
    out: Path,
    target: str = "onnx",
    check: bool = False,
) -> Path:
    """Min-max ranges. Checks are left out, unless asked for: nobody else has any."""
    program = fuseq.capture(model, calibration[0], dynamic=target == "onnx")
    program = fuseq.quantize(program, target=target, calibration=calibration)
    return _lowered(program, target, out, check)


def qat(model: nn.Module, calibration: list[Tensor], out: Path, target: str = "onnx") -> Prepared:
    """Trained in the integers of the file."""
    module = fuseq.qat.prepare(model, calibration[0], target=target, calibration=calibration)
    return Prepared(
        module,
        freeze_activations=lambda: module.stage(observing=False, weight_grids_frozen=False),
        freeze_all=lambda: module.stage(observing=False, weight_grids_frozen=True),
        deploy=lambda: _lowered(fuseq.qat.finalize(module), target, out),
    )


def _lowered(program: Program, target: str, out: Path, check: bool = False) -> Path:
    fuseq.lower(program, backend=target, out=out / "bundle", check=check)
    return out / "bundle" / FILES[target]


def fused(model: nn.Module, example: Tensor, out: Path) -> Run:
    """Branches become one convolution each."""
    program: Run = fuseq.fuse(model, example)
    return program
