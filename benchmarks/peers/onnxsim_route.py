"""onnxsim: what its simplifier leaves of the float network."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxsim
from torch import Tensor, nn

from benchmarks.peers.onnx_export import exported


def fused(model: nn.Module, example: Tensor, out: Path) -> Path:
    """PyTorch's file, simplified."""
    simplified, _ = onnxsim.simplify(onnx.load(exported(model, example, out / "float.onnx")))
    onnx.save(simplified, out / "simplified.onnx")
    return out / "simplified.onnx"
