"""ONNX Runtime's `quantize_static`: min-max ranges, unsigned activations, weights per channel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from torch import Tensor, nn


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Images in the order of a list."""

    def __init__(self, name: str, images: list[Tensor]) -> None:
        self.images = iter([{name: image.numpy()} for image in images])

    def get_next(self) -> Any:
        """The next image, or None at the end."""
        return next(self.images, None)


def exported(model: nn.Module, example: Tensor, file: Path) -> Path:
    """The float network as PyTorch exports it."""
    torch.onnx.export(
        model.eval(),
        (example,),
        str(file),
        input_names=["input"],
        dynamo=True,
        verbose=False,
    )
    return file


def ptq(model: nn.Module, calibration: list[Tensor], out: Path) -> Path:
    """Quantized by `quantize_static`."""
    source = exported(model, calibration[0], out / "float.onnx")
    quantize_static(
        str(source),
        str(out / "int8.onnx"),
        Reader("input", calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return out / "int8.onnx"
