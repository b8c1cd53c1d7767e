"""The float ONNX file as PyTorch exports it, which several toolkits start from."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn


def exported(model: nn.Module, example: Tensor, file: Path) -> Path:
    """Write a network, with what the exporter folds by itself."""
    torch.onnx.export(
        model,
        (example,),
        str(file),
        input_names=["input"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return file
