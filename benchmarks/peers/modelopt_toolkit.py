"""ModelOpt: NVIDIA's toolkit, with what it recommends for convolutional networks.

INT8_DEFAULT_CFG: weights symmetric per channel, inputs of convolutions symmetric and signed, all
else in float. (Unsigned grids where an input is never negative give 0.03 dB in PTQ, its "mse"
algorithm 0.02 dB: none of its presets for CNNs has them.) In QAT weights train on the ranges of
calibration, which are fixed: there is nothing to freeze.

The file holds float weights before a QuantizeLinear: packing them is marked as to do in ModelOpt.
A signed grid after a ReLU is what TensorRT wants; ONNX Runtime computes such convolutions in float.
Batch norms and branches stay in it: to fold them is left to TensorRT.
"""

from __future__ import annotations

import copy
from pathlib import Path

import modelopt.torch.quantization as mtq
import torch
from torch import Tensor, nn

from benchmarks.peers.bed import Prepared


def ptq(model: nn.Module, calibration: list[Tensor], out: Path) -> Path:
    """Quantized with the settings for convolutional networks."""
    return _exported(_quantized(model, calibration), calibration[0], out)


def qat(model: nn.Module, calibration: list[Tensor], out: Path) -> Prepared:
    """Weights trained on the ranges of calibration, which stay."""
    module = _quantized(model, calibration).train()
    return Prepared(
        module,
        deploy=lambda: _exported(module, calibration[0], out),
    )


def fused(model: nn.Module, example: Tensor, out: Path) -> Path:
    """What it leaves in a quantized file."""
    return ptq(model, [example], out)


def _quantized(model: nn.Module, calibration: list[Tensor]) -> nn.Module:
    def observe(network: nn.Module) -> None:
        for image in calibration:
            network(image)

    own = copy.deepcopy(model).eval()
    quantized: nn.Module = mtq.quantize(own, mtq.INT8_DEFAULT_CFG, observe)
    return quantized


def _exported(module: nn.Module, example: Tensor, out: Path) -> Path:
    """Through the older exporter, which ModelOpt has its symbolic functions for."""
    file = out / "int8.onnx"
    torch.onnx.export(module.eval(), (example,), str(file), dynamo=False)
    return file
