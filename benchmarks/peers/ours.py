"""fuseq itself, at the same tasks: plain `quantize`, and `qat.prepare` as it is by default."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

import fuseq
import fuseq.qat
from benchmarks.peers.bed import Prepared, Run
from fuseq.program import Program


def ptq(model: nn.Module, calibration: list[Tensor], out: Path) -> Path:
    """Min-max ranges; the file for ONNX Runtime. The checks are left out: nobody else has any."""
    return _lowered(fuseq.quantize(model, calibration[0], calibration=calibration), out)


def qat(model: nn.Module, calibration: list[Tensor], out: Path) -> Prepared:
    """Trained in the integers of the file."""
    module = fuseq.qat.prepare(model, calibration[0], calibration=calibration)
    return Prepared(
        module,
        freeze_activations=lambda: module.stage(observing=False, weight_grids_frozen=False),
        freeze_all=lambda: module.stage(observing=False, weight_grids_frozen=True),
        deploy=lambda: _lowered(fuseq.qat.finalize(module), out),
    )


def _lowered(program: Program, out: Path) -> Path:
    fuseq.lower(program, backend="onnx", out=out / "bundle", check=False)
    return out / "bundle" / "model.int8.qdq.onnx"


def fused(model: nn.Module, example: Tensor, out: Path) -> Run:
    """Branches become one convolution each."""
    program: Run = fuseq.fuse(model, example)
    return program
