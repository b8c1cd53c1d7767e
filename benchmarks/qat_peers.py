"""Quantization-aware training of other toolkits, on a plain fused network.

Each of `PEERS` takes a float network and gives it prepared, in train mode, with what the common
recipe needs: stop the observers of activations, stop all of them, and convert to what is deployed.
Weights are per channel, activations 8 bits per tensor (torch.ao's default of 7 bits for x86 is
passed over: it costs up to 0.7 dB and buys nothing where there is VNNI).

The network it is given stays as it is. A peer that is not installed raises ImportError.
"""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.qat_runs import Prepared


def fx(model: nn.Module, example: Tensor, version: int) -> Prepared:
    """torch.ao with `prepare_qat_fx`; version 0 is `FakeQuantize`, 1 (its default) the fused one.

    Deployed is the converted model, which runs onednn's int8 kernels.
    """
    # By name: an import of torch.ao is banned, since torch removes it. A benchmark may lose a row.
    ao = importlib.import_module("torch.ao.quantization")
    quantize_fx = importlib.import_module("torch.ao.quantization.quantize_fx")
    mapping = ao.get_default_qat_qconfig_mapping("onednn", version=version)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = quantize_fx.prepare_qat_fx(copy.deepcopy(model).train(), mapping, (example,))

    def deploy() -> Callable[[Tensor], Tensor]:
        torch.backends.quantized.engine = "onednn"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted: nn.Module = quantize_fx.convert_fx(copy.deepcopy(prepared).eval())
        return converted

    return Prepared(prepared, *_freezers(prepared, ao.FakeQuantizeBase), deploy)


def pt2e(model: nn.Module, example: Tensor) -> Prepared:
    """Run torchao with the X86 inductor quantizer; deployed is the converted reference model."""
    torchao = importlib.import_module("torchao.quantization.pt2e")
    quantize_pt2e = importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    x86 = importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    sizes = ({0: torch.export.Dim.DYNAMIC},)
    # An exported module shares its parameters with the one it was made of.
    own = copy.deepcopy(model).train()
    exported = torch.export.export(own, (example,), dynamic_shapes=sizes).module()
    prepared = quantize_pt2e.prepare_qat_pt2e(exported, quantizer)
    torchao.allow_exported_model_train_eval(prepared)
    prepared.train()

    def deploy() -> Callable[[Tensor], Tensor]:
        converted: nn.Module = quantize_pt2e.convert_pt2e(copy.deepcopy(prepared))
        return converted

    return Prepared(prepared, *_freezers(prepared, torchao.FakeQuantizeBase), deploy)


def _freezers(
    module: nn.Module, fake_quantize: type[Any]
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Stop the observers of activations (per tensor), and all of them."""
    found = [m for m in module.modules() if isinstance(m, fake_quantize)]

    def freeze(modules: list[Any]) -> None:
        for each in modules:
            each.disable_observer()

    return lambda: freeze([m for m in found if not m.is_per_channel]), lambda: freeze(found)


def brevitas(model: nn.Module, example: Tensor) -> Prepared:
    """Brevitas: learned scales of activations that start from the statistics of 40 batches.

    40 batches are the recipe's observing. By default it takes 300, and each batch until then has a
    scale of its own: a run of 200 steps would never see the scales that ship. What is learned goes
    on to the end: nothing to freeze. Its simulation stands for what is deployed.
    """
    layers = importlib.import_module("brevitas.nn")
    quantizers = importlib.import_module("brevitas.quant")
    activation, signed = (
        {"act_quant": getattr(quantizers, name).let(collect_stats_steps=40)}
        for name in ("Uint8ActPerTensorFloat", "ShiftedUint8ActPerTensorFloat")
    )

    class Quantized(nn.Module):
        """The fused student in brevitas' layers."""

        def __init__(self) -> None:
            super().__init__()
            self.input = layers.QuantIdentity(**activation)
            self.stem, self.head = self.conv(model.stem), self.conv(model.head)
            self.convs = nn.ModuleList(self.conv(conv) for conv in model.convs)  # type: ignore[union-attr]
            self.relus = nn.ModuleList(layers.QuantReLU(**activation) for _ in self.convs)
            self.stem_output, self.sum_output, self.head_output = (
                layers.QuantIdentity(**signed) for _ in range(3)
            )

        @staticmethod
        def conv(source: Any) -> nn.Module:
            conv: nn.Module = layers.QuantConv2d(
                source.in_channels,
                source.out_channels,
                3,
                padding=1,
                weight_quant=quantizers.Int8WeightPerChannelFloat,
            )
            conv.load_state_dict(source.state_dict(), strict=False)
            return conv

        def forward(self, x: Tensor) -> Tensor:
            first = y = self.stem_output(self.stem(self.input(x)))
            for conv, relu in zip(self.convs, self.relus, strict=True):
                y = relu(conv(y))
            y = self.head_output(self.head(self.sum_output(y + first)))
            return torch.pixel_shuffle(y, 3)

    module = Quantized().train()
    return Prepared(module, lambda: None, lambda: None, lambda: copy.deepcopy(module).eval())


PEERS: dict[str, Callable[[nn.Module, Tensor], Prepared]] = {
    "torch.ao FX, v0": lambda model, example: fx(model, example, 0),
    "torch.ao FX, v1": lambda model, example: fx(model, example, 1),
    "torchao PT2E X86": pt2e,
    "brevitas": brevitas,
}
