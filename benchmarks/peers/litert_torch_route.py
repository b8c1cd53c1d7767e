"""litert-torch for the float file, AI Edge Quantizer for its int8 form; images channels last.

The recipe is the one that the quantizer has for int8 CNNs: weights in int8 per channel, activations
in int8, a moving average of minima and maxima. Training goes through PT2E with the quantizer that
litert-torch brings; its fake quantizers have another weight grid than the one that is converted
(scales differ by 1/255 where max |w| / 127 meets max |w| / 127.5, and by its floor of 2**-12).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import litert_torch
import torch
from ai_edge_quantizer import quantizer, recipe
from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
from litert_torch.quantize.quant_config import QuantConfig
from torch import Tensor, nn
from torchao.quantization.pt2e.fake_quantize import FusedMovingAvgObsFakeQuantize
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

from benchmarks.peers.bed import Prepared


def fused(model: nn.Module, example: Tensor, out: Path) -> Path:
    """The float file."""
    return _converted(model, example, out / "float.tflite")


def ptq(model: nn.Module, calibration: list[Tensor], out: Path) -> Path:
    """The float file, calibrated and quantized."""
    route = quantizer.Quantizer(str(fused(model, calibration[0], out)))
    route.load_quantization_recipe(recipe.static_wi8_ai8())
    images = [{"args_0": image.permute(0, 2, 3, 1).numpy()} for image in calibration]
    ranges = route.calibrate({"serving_default": images})
    route.quantize(ranges).export_model(str(out / "int8.tflite"), overwrite=True)
    return out / "int8.tflite"


def qat(model: nn.Module, calibration: list[Tensor], out: Path) -> Prepared:
    """Fake quantization by PT2E, symmetric weights per channel; converted with its scales."""
    config = get_symmetric_quantization_config(is_per_channel=True, is_qat=True)
    # With `is_qat` it looks for batch norms, and fails in torch 2.13: its pattern is a function,
    # where torch.export wants a module. The network has none.
    chosen = PT2EQuantizer().set_global(replace(config, is_qat=False))
    batch = torch.cat(calibration[:2])
    exported = torch.export.export(
        copy.deepcopy(model), (batch,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    ).module()
    module = prepare_qat_pt2e(exported, chosen)
    observing = [m for m in module.modules() if isinstance(m, FusedMovingAvgObsFakeQuantize)]

    def freeze(kept: bool) -> None:
        for fake_quantizer in observing:
            if not (kept and fake_quantizer.is_per_channel):
                fake_quantizer.disable_observer()

    def deploy() -> Path:
        # Folded weights are refused: "must be ... per-axis integer quantized".
        trained = convert_pt2e(copy.deepcopy(module), fold_quantize=False)
        how = QuantConfig(pt2e_quantizer=chosen)
        return _converted(trained, calibration[0], out / "trained.tflite", quant_config=how)

    return Prepared(
        module,
        freeze_activations=lambda: freeze(kept=True),
        freeze_all=lambda: freeze(kept=False),
        deploy=deploy,
    )


def _converted(model: nn.Module, example: Tensor, file: Path, **options: Any) -> Path:
    outputs = [0] if model(example).ndim == 4 else []
    channels_last = litert_torch.to_channel_last_io(model, args=[0], outputs=outputs)
    sample = (example.permute(0, 2, 3, 1),)
    litert_torch.convert(channels_last, sample, **options).export(str(file))
    return file
