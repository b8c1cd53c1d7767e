"""NNCF: Intel's toolkit, quantized for a CPU.

Of its presets "mixed" is taken: weights symmetric per channel, activations asymmetric. The other,
"performance", has symmetric activations and loses 0.3 dB more; a CPU and an NPU are the same to it
here. Its 7 bits for weights of the first layer, a remedy for processors without VNNI, are switched
off. Ranges start at those of calibration and are parameters in training, with nothing to freeze.

The file holds float weights before a QuantizeLinear, which runtimes fold. Batch norms and branches
stay in it: to fold them is left to OpenVINO.

The first run compiles a kernel with the C++ compiler of the machine, for longer than the minute
that it is given by default.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.peers.bed import Prepared

os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "0")

import nncf


def ptq(model: nn.Module, calibration: list[Tensor], out: Path) -> Path:
    """Ranges and corrected biases, by its defaults."""
    return _exported(_quantized(model, calibration), calibration[0], out)


def qat(model: nn.Module, calibration: list[Tensor], out: Path) -> Prepared:
    """The quantized network, weights and ranges trained together."""
    module = _quantized(model, calibration).train()
    return Prepared(
        module,
        deploy=lambda: _exported(module, calibration[0], out),
    )


class Whole(nn.Module):
    """A network inside another module: NNCF puts its hooks into it, which stop an nn.Sequential."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """As the network."""
        result: Tensor = self.network(x)
        return result


def fused(model: nn.Module, example: Tensor, out: Path) -> Path:
    """What it leaves in a quantized file."""
    return ptq(Whole(model), [example], out)


def _quantized(model: nn.Module, calibration: list[Tensor]) -> nn.Module:
    quantized: nn.Module = nncf.quantize(
        copy.deepcopy(model).eval(),
        nncf.Dataset(calibration),
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.DISABLE
        ),
    )
    return quantized


def _exported(module: nn.Module, example: Tensor, out: Path) -> Path:
    """Through the older exporter: the newer one stops at PyTorch's FakeQuantize in NNCF's hooks."""
    file = out / "int8.onnx"
    stripped = nncf.strip(module.eval(), example_input=example)
    torch.onnx.export(stripped, (example,), str(file), dynamo=False)
    return file
