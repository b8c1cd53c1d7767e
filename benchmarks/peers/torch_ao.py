"""torch.ao's FX mode: onednn's int8 kernels, weights per channel, activations of 8 bits.

Its default for x86, activations of 7 bits, is passed over: it costs up to 0.7 dB and buys nothing
where there is VNNI. What ships are kernels of PyTorch; there is no file.
"""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.bed import Prepared, Run

# By name: an import of torch.ao is banned, since torch removes it. A benchmark may lose a row.
ao = importlib.import_module("torch.ao.quantization")
quantize_fx = importlib.import_module("torch.ao.quantization.quantize_fx")
ENGINE = "onednn"


def ptq(model: nn.Module, calibration: list[Tensor], out: Path) -> Run:
    """Histogram observers, as it has them by default."""
    mapping = ao.get_default_qconfig_mapping(ENGINE)
    own = copy.deepcopy(model).eval()
    prepared = quantize_fx.prepare_fx(own, mapping, (calibration[0],))
    with torch.no_grad():
        for image in calibration:
            prepared(image)
    return _converted(prepared)


def qat(model: nn.Module, calibration: list[Tensor], out: Path, version: int = 1) -> Prepared:
    """Version 1, the default, observes and quantizes in one kernel; 0 is `FakeQuantize`."""
    mapping = ao.get_default_qat_qconfig_mapping(ENGINE, version=version)
    own = copy.deepcopy(model).train()
    prepared = quantize_fx.prepare_qat_fx(own, mapping, (calibration[0],))
    fake_quantizers = [m for m in prepared.modules() if isinstance(m, ao.FakeQuantizeBase)]
    return Prepared(
        prepared,
        freeze_activations=lambda: stop([m for m in fake_quantizers if not m.is_per_channel]),
        freeze_all=lambda: stop(fake_quantizers),
        deploy=lambda: _converted(copy.deepcopy(prepared).eval()),
    )


def stop(fake_quantizers: list[Any]) -> None:
    """Let fake quantizers of torch.ao or torchao keep their grids, in place."""
    for each in fake_quantizers:
        each.disable_observer()


def _converted(prepared: Any) -> Run:
    torch.backends.quantized.engine = ENGINE
    run: Run = quantize_fx.convert_fx(prepared)
    return run


def fused(model: nn.Module, example: Tensor, out: Path) -> Run:
    """What it merges before it quantizes."""
    run: Run = quantize_fx.fuse_fx(copy.deepcopy(model).eval())
    return run
