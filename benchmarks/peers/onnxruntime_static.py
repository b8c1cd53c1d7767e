"""ONNX Runtime's `quantize_static`: min-max ranges, unsigned activations, weights per channel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)
from torch import Tensor, nn

from benchmarks.peers.onnx_export import exported


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Images in the order of a list."""

    def __init__(self, name: str, images: list[Tensor]) -> None:
        self.images = iter([{name: image.numpy()} for image in images])

    def get_next(self) -> Any:
        """The next image, or None at the end."""
        return next(self.images, None)


def ptq(model: nn.Module, calibration: list[Tensor], out: Path) -> Path:
    """Shapes inferred and folded first, as its documentation asks for; then `quantize_static`."""
    source = exported(model, calibration[0], out / "float.onnx")
    quant_pre_process(str(source), str(out / "folded.onnx"))
    quantize_static(
        str(out / "folded.onnx"),
        str(out / "int8.onnx"),
        Reader("input", calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return out / "int8.onnx"


def fused(model: nn.Module, example: Tensor, out: Path) -> Path:
    """What the runtime's own optimizer leaves, before layouts that only its kernels have."""
    source = exported(model, example, out / "float.onnx")
    options = SessionOptions()
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(out / "optimized.onnx")
    InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return out / "optimized.onnx"
