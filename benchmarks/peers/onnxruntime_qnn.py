"""ONNX Runtime's configuration for Qualcomm's QNN: unsigned activations, weights per channel.

Without `per_channel` it has one unsigned grid for all weights of a layer; ranges are minima and
maxima.
"""

from __future__ import annotations

from pathlib import Path

from onnxruntime.quantization import QuantType, quantize
from onnxruntime.quantization.execution_providers.qnn import (
    get_qnn_qdq_config,
    qnn_preprocess_model,
)
from torch import Tensor, nn

from benchmarks.peers.onnx_export import exported
from benchmarks.peers.onnxruntime_static import Reader


def ptq(model: nn.Module, calibration: list[Tensor], out: Path) -> Path:
    """Quantized with the configuration that is made for the network."""
    source = exported(model, calibration[0], out / "float.onnx")
    if qnn_preprocess_model(source, out / "folded.onnx"):
        source = out / "folded.onnx"
    config = get_qnn_qdq_config(
        source, Reader("input", calibration), weight_type=QuantType.QInt8, per_channel=True
    )
    quantize(source, out / "int8.onnx", config)
    return out / "int8.onnx"
