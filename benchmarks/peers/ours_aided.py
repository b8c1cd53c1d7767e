"""fuseq after training with the aids that `fuseq ptq` has by default: for quality, no checks."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

import fuseq

PASSES = "fuse-affine,equalize,legalize,quantize{observer=mse},round-weights"


def ptq(model: nn.Module, calibration: list[Tensor], out: Path) -> Path:
    """Layers equalized, ranges of least squares, weights rounded to fit the data."""
    fuseq.lower(
        model,
        calibration[0],
        backend="onnx",
        out=out / "bundle",
        calibration=calibration,
        passes=PASSES,
        check=False,
    )
    return out / "bundle" / "model.int8.qdq.onnx"
