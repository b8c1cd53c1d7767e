"""torchao's PT2E with the quantizer for X86 inductor; what ships is its converted reference model.

That model computes in float with quantizers between; inductor, which makes kernels of it, is left
out.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e import FakeQuantizeBase, allow_exported_model_train_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from benchmarks.peers.bed import Prepared, Run
from benchmarks.peers.torch_ao import stop


def _quantizer(is_qat: bool) -> Any:
    return X86InductorQuantizer().set_global(
        get_default_x86_inductor_quantization_config(is_qat=is_qat)
    )


def _exported(model: nn.Module, example: Tensor) -> Any:
    # An exported module shares its parameters with the one it was made of: copied before.
    sizes = ({0: torch.export.Dim.DYNAMIC},)
    return torch.export.export(model, (example,), dynamic_shapes=sizes).module()


def ptq(model: nn.Module, calibration: list[Tensor], out: Path) -> Run:
    """Observers as the quantizer has them by default."""
    example = torch.cat(calibration[:2])
    prepared = prepare_pt2e(_exported(copy.deepcopy(model).eval(), example), _quantizer(False))
    with torch.no_grad():
        for image in calibration:
            prepared(image)
    run: Run = convert_pt2e(prepared)
    return run


def qat(model: nn.Module, calibration: list[Tensor], out: Path) -> Prepared:
    """Trained as exported."""
    exported = _exported(copy.deepcopy(model).train(), torch.cat(calibration[:4]))
    prepared = prepare_qat_pt2e(exported, _quantizer(True))
    allow_exported_model_train_eval(prepared)
    prepared.train()
    fake_quantizers = [m for m in prepared.modules() if isinstance(m, FakeQuantizeBase)]
    return Prepared(
        prepared,
        freeze_activations=lambda: stop([m for m in fake_quantizers if not m.is_per_channel]),
        freeze_all=lambda: stop(fake_quantizers),
        deploy=lambda: convert_pt2e(copy.deepcopy(prepared)),
    )


def fused(model: nn.Module, example: Tensor, out: Path) -> Run:
    """What it merges while it prepares for quantization."""
    batch = torch.cat([example, example])
    run: Run = prepare_pt2e(_exported(copy.deepcopy(model).eval(), batch), _quantizer(False))
    return run
