"""What a network's own hand-written fusion makes of it: the yardstick beside ours.

Three ways are in use: a method of the network, timm's helper that calls a method of each block, and
blocks that fuse themselves in eval.
"""

from __future__ import annotations

import copy
import importlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.zoo.packages import Branches

_BLOCK_METHODS = ("reparameterize", "fuse", "switch_to_deploy")
_COUNTED = {F.conv2d: "conv", F.batch_norm: "bn", torch.batch_norm: "bn"}


@dataclass(frozen=True)
class OwnFusion:
    """What is left of a network after its own fusion.

    Attributes:
        conv: convolutions that run in float32; None if it fails there.
        bn: batch norms that run in float32.
        error64: relative error against the network itself in float64, or the exception.
    """

    conv: int | None
    bn: int | None
    error64: float | str


class _Calls(TorchFunctionMode):
    """Counts the convolutions and batch norms that the image reaches, by its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _COUNTED and args[0].requires_grad:
            self.count[_COUNTED[func]] += 1
        return func(*args, **(kwargs or {}))


def _count(model: nn.Module, image: Tensor) -> Counter[str]:
    model.requires_grad_(False)
    with torch.enable_grad(), _Calls() as calls:
        model(image.clone().requires_grad_())
    return calls.count


@torch.no_grad()
def own_fusion(model: nn.Module, image: Tensor) -> OwnFusion | None:
    """Fuse a copy of a network its own way; None if it has no way.

    Args:
        model: a network in eval, not edited.
        image: float32 input.
    """
    fuse = _method(model)
    if fuse is None:
        return None
    unfused = copy.deepcopy(model).double()(image.double())
    conv = bn = None
    try:
        count = _count(fuse(copy.deepcopy(model)), image)
        conv, bn = count["conv"], count["bn"]
        double = fuse(copy.deepcopy(model).double())(image.double())
    except Exception as error:  # several of them fail on their own networks
        return OwnFusion(conv, bn, f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return OwnFusion(conv, bn, float((double - unfused).abs().max() / unfused.abs().max()))


def _method(model: nn.Module) -> Callable[[nn.Module], nn.Module] | None:
    if isinstance(model, Branches):
        return _by_eval
    if hasattr(model, "reparameterize_model"):
        return _by_its_method
    if any(hasattr(m, name) for m in model.modules() for name in _BLOCK_METHODS):
        return lambda copied: importlib.import_module("timm.utils").reparameterize_model(copied)
    return None


def _by_eval(branches: Any) -> nn.Module:
    network: nn.Module = branches.network
    return network.train().eval()


def _by_its_method(model: Any) -> nn.Module:
    model.reparameterize_model()
    fused: nn.Module = model
    return fused
