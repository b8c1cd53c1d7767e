"""Published networks of timm and torchvision, with the structure fusion leaves of them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


def declare_missing_operators() -> None:
    """Let torchvision be imported where its compiled operators cannot be loaded.

    Its wheel on the package index is built for CUDA; on a CPU-only torch its library does not
    load, and `import torchvision` stops at two operators that classification never calls.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
            library.define(schema)
    _KEPT.append(library)


_KEPT: list[Any] = []
"""A library withdraws its operators when it is collected."""


@dataclass(frozen=True)
class Structure:
    """Layers before and after fusion."""

    conv_before: int
    conv_after: int
    bn_before: int
    bn_after: int = 0


def create(name: str) -> nn.Module:
    """A network by name (`torchvision:name`, else timm's), with random weights and statistics."""
    declare_missing_operators()
    torch.manual_seed(0)
    source, _, plain = name.rpartition(":")
    if source:
        keywords = {"init_weights": True} if plain in ("googlenet", "inception_v3") else {}
        models = importlib.import_module("torchvision.models")
        model: nn.Module = models.get_model(plain, weights=None, **keywords)
    else:
        model = importlib.import_module("timm").create_model(plain, pretrained=False)
    generator = torch.Generator().manual_seed(1)
    for key, value in model.named_buffers():
        if key.endswith("running_mean"):
            value.normal_(0.0, 0.1, generator=generator)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def own_fusion(model: nn.Module) -> tuple[int, int] | None:
    """Convolutions and batch norms that timm's own re-parameterization leaves; None without one."""
    blocks = ("reparameterize", "fuse", "switch_to_deploy")
    if not any(hasattr(module, method) for module in model.modules() for method in blocks):
        return None
    try:
        fused = importlib.import_module("timm.utils").reparameterize_model(model)
    except Exception:  # several of them fail on their own networks
        return None
    kinds = [type(module).__mro__ for module in fused.modules()]
    return sum(nn.Conv2d in k for k in kinds), sum(
        nn.BatchNorm2d in k or nn.BatchNorm1d in k for k in kinds
    )
