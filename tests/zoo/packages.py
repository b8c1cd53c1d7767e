"""Networks by name, as their users install them, with weights and statistics as after training."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.networks import Network

_KEPT: list[Any] = []
"""A library withdraws its operators when it is collected."""


def create(network: Network, seed: int = 0) -> nn.Module:
    """A network in eval, with random weights, biases and scales, and statistics of random images.

    Args:
        network: of a package; `tests:file.factory` calls a factory of tests/networks/file.py,
            `small` if none is named.
        seed: of everything random in it.
    """
    package, _, name = network.name.partition(":")
    torch.manual_seed(seed)
    if package == "tests":
        file, _, factory = name.partition(".")
        module = importlib.import_module(f"tests.networks.{file}")
        model: nn.Module = getattr(module, factory or "small")()
        return model
    declare_missing_operators()
    model = _BUILDERS[package](name)
    generator = torch.Generator().manual_seed(seed + 1)
    _randomize(model, generator)
    _set_statistics(model.eval(), _images(network.side, generator))
    return model


def _timm(network: str) -> nn.Module:
    model: nn.Module = importlib.import_module("timm").create_model(network, pretrained=False)
    return model


def _torchvision(network: str) -> nn.Module:
    keywords = {"init_weights": True} if network in ("googlenet", "inception_v3") else {}
    models = importlib.import_module("torchvision.models")
    model: nn.Module = models.get_model(network, weights=None, **keywords)
    return model


def _birder(network: str) -> nn.Module:
    """A network of birder, whose own `__init__` wants everything that training it wants."""
    if "birder" not in sys.modules:
        spec = importlib.util.find_spec("birder")
        assert spec is not None
        assert spec.origin is not None
        package = ModuleType("birder")
        package.__spec__, package.__file__ = spec, spec.origin
        package.__path__ = [str(Path(spec.origin).parent)]
        sys.modules["birder"] = package
    importlib.import_module("birder.net")
    registry = importlib.import_module("birder.model_registry").registry
    model: nn.Module = registry.net_factory(network, num_classes=10)
    return model


def _super_resolution(
    module: str, settings: dict[str, tuple[str, dict[str, Any]]]
) -> Callable[[str], nn.Module]:
    """Builder of networks that a package keeps one file each."""

    def build(network: str) -> nn.Module:
        path, keywords = settings[network]
        file, _, name = path.rpartition(".")
        model: nn.Module = getattr(importlib.import_module(f"{module}.{file}"), name)(**keywords)
        fuses_itself = type(model).__name__ in _FUSING_THEMSELVES
        return Branches(model) if fuses_itself else model

    return build


_RESSELT: dict[str, tuple[str, dict[str, Any]]] = {
    "SPANPlus": ("spanplus.arch.SpanPlus", {"upscale": 2, "upsampler": "ps"}),
    "RTMoSR": ("rtmosr.arch.RTMoSR", {"scale": 2}),
    "SMoSR": ("smosr.arch.SMoSR", {"scale": 2, "rep": True, "upsampler": "pixelshuffledirect"}),
}

_FUSING_THEMSELVES = ("SpanPlus", "RTMoSR", "SMoSR", "SPAN")
"""Classes whose blocks run one fused convolution as soon as they are in eval."""

_SPANDREL: dict[str, tuple[str, dict[str, Any]]] = {
    "SPAN": (
        "SPAN.__arch.span.SPAN",
        {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 32, "upscale": 2},
    ),
    "NAFNet": (
        "NAFNet.__arch.NAFNet_arch.NAFNet",
        {"width": 16, "middle_blk_num": 1, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]},
    ),
}

_BUILDERS: dict[str, Callable[[str], nn.Module]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "birder": _birder,
    "resselt": _super_resolution("resselt.archs", _RESSELT),
    "spandrel": _super_resolution("spandrel.architectures", _SPANDREL),
}


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


@torch.no_grad()
def _randomize(model: nn.Module, generator: torch.Generator) -> None:
    """Draw what a fresh network leaves at a constant: a fold that forgets it is then far off.

    That is affines of norms, biases, layer scales, and layers that start at zero.
    """
    for name, parameter in model.named_parameters():
        if not (parameter == parameter.flatten()[0]).all():
            continue
        if name.endswith("bias"):
            parameter.uniform_(-0.1, 0.1, generator=generator)
        elif parameter.dim() > 1 and parameter[0].numel() > 1:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.uniform_(0.5, 1.2, generator=generator)


def _images(side: int, generator: torch.Generator) -> Tensor:
    """Noise of several brightnesses and contrasts, so that pooled features differ."""
    brightness, contrast = torch.randn(2, 8, 3, 1, 1, generator=generator)
    return torch.randn(8, 3, side, side, generator=generator) * contrast + brightness


@torch.no_grad()
def _set_statistics(model: nn.Module, images: Tensor) -> None:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    model(images)
    for norm in norms:
        norm.eval()


class Branches(nn.Module):
    """A network that fuses itself in eval, held to the branches that it trains.

    Its layers are in eval; its containers stay in training, whoever asks for eval.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.train()

    def train(self, mode: bool = True) -> Branches:
        self.training = mode
        for module in self.network.modules():
            module.training = any(True for _ in module.children())
        return self

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image)
