"""What `equalize` and `clip-gates` give: SQNR of int8 gates and networks, with and without.

    python -m benchmarks.equalize

Gates: two 3x3 convolutions 16 -> 32 on one input, a gate, and a 3x3 convolution 32 -> 32 behind
it. The input is white and uniform on [-1, 1]. The rows of a convolution are Gaussian and scaled so
that outputs have the standard deviation exp(sigma N(0, 1)), sigma .7, drawn anew for each channel:
that is the channel spread. The second convolution is scaled once more, by the ratio of the ranges.
SQNR is that of the next convolution's sum, from the integers of the gate and of its weights,
against the float network, in dB, with min-max ranges, as mean over seeds. In brackets: the figures
of the reference study.

Networks: those of tests/networks, the scale and bias of each batch norm multiplied by
exp(sigma N(0, 1)); SQNR of the outputs for 32 images.
"""

from __future__ import annotations

import argparse
import importlib
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq import plugins
from fuseq.pass_spec import parse_passes
from fuseq.program import Program

SPREAD = 0.7
NETWORKS = ["mobilenet_v2", "mobilenet_v3", "resnet", "unet", "squeezenet", "gated"]
ARRANGEMENTS = {
    "separate": "",
    "merged": "fuse-gates{always=true},",
    "separate, equalized": "clip-gates,equalize,",
    "merged, equalized": "fuse-gates{always=true},clip-gates,equalize,",
}


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: the gate.
        gate: what it computes.
        ratio: standard deviation of the second factor's convolution over the first's.
        reference: figures of the reference study: separate, merged, merged and equalized.
    """

    name: str
    gate: Callable[[Tensor, Tensor], Tensor]
    ratio: float
    reference: tuple[float, float, float]


CASES = [
    Case("a * b, 1:1", torch.mul, 1, (21.9, 21.2, 28.9)),
    Case("a * b, 16:1", torch.mul, 16, (22.5, 7.2, 28.2)),
    Case("a * sigmoid(b), 4:1", lambda a, b: a * torch.sigmoid(b), 4, (24.7, 19.5, 32.4)),
    Case("tanh(a) * tanh(b), 4:1", lambda a, b: a.tanh() * b.tanh(), 4, (20.7, 14.1, 30.5)),
]


class Gate(nn.Module):
    """Two sibling convolutions, a gate, and a convolution that reads it."""

    def __init__(self, case: Case, seed: int) -> None:
        super().__init__()
        self.gate = case.gate
        self.a, self.b = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.next = nn.Conv2d(32, 32, 3, padding=1)
        generator = torch.Generator().manual_seed(seed)
        _draw(self.a, 1.0, SPREAD, generator)
        _draw(self.b, case.ratio, SPREAD, generator)
        _draw(self.next, 1.0, 0.0, generator)

    def forward(self, x: Tensor) -> Tensor:
        """Output of the next convolution."""
        y: Tensor = self.next(self.gate(self.a(x), self.b(x)))
        return y


@torch.no_grad()
def _draw(conv: nn.Conv2d, scale: float, spread: float, generator: torch.Generator) -> None:
    """Weights and biases for outputs of standard deviation `scale * exp(spread N(0, 1))`.

    Inputs are taken to be uniform on [-1, 1], with variance 1/3.
    """
    assert conv.bias is not None
    conv.weight.normal_(0, math.sqrt(3 / conv.weight[0].numel()), generator=generator)
    conv.bias.normal_(0, 0.1, generator=generator)
    rows = scale * torch.exp(spread * torch.randn(conv.out_channels, generator=generator))
    conv.weight *= rows.reshape(-1, 1, 1, 1)
    conv.bias *= rows


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    options = parser.parse_args()
    seeds = range(options.seeds)
    print(f"{'gate':24}" + "".join(f"{name:>22}" for name in ARRANGEMENTS))
    for case in CASES:
        known = dict(zip(("separate", "merged", "merged, equalized"), case.reference, strict=True))
        cells = [
            f"{statistics.mean(gate_sqnr(case, passes, seed) for seed in seeds):.1f}"
            + (f" ({known[name]})" if name in known else "")
            for name, passes in ARRANGEMENTS.items()
        ]
        print(f"{case.name:24}" + "".join(f"{cell:>22}" for cell in cells), flush=True)
    print(f"\n{'network, spread':24}{'plain':>22}{'equalized':>22}")
    for name in options.networks:
        for spread in (0.0, SPREAD):
            cells = [
                f"{statistics.mean(network_sqnr(name, spread, passes, seed) for seed in seeds):.1f}"
                for passes in ("", "clip-gates,equalize,")
            ]
            row = "".join(f"{cell:>22}" for cell in cells)
            print(f"{name + f', {spread}':24}{row}", flush=True)


def gate_sqnr(case: Case, passes: str, seed: int) -> float:
    """SQNR of the sum of the convolution behind a gate, in dB."""
    model = Gate(case, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    batches = [2 * torch.rand(2, 16, 32, 32, generator=generator) - 1 for _ in range(5)]
    program = quantized(model, passes, batches[1:])
    (layer,) = [n for n in program.graph.nodes if n.target == "next"]
    (gate,) = layer.all_input_nodes
    table, integers = program.quantization, fuseq.execute(program, (batches[0],)).integers
    assert table is not None
    value = table.grids[gate.name].dequantize(integers[gate.name])
    weight, bias = (
        table.grids[f"next.{key}"].dequantize(table.integers[f"next.{key}"])
        for key in ("weight", "bias")
    )
    with torch.no_grad():
        return sqnr(model(batches[0]), F.conv2d(value, weight, bias, padding=1))


def network_sqnr(name: str, spread: float, passes: str, seed: int) -> float:
    """SQNR of the output of a network of tests/networks, in dB."""
    model = importlib.import_module(f"tests.networks.{name}").small()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                factor = torch.exp(spread * torch.randn(norm.num_features, generator=generator))
                norm.weight.mul_(factor)
                norm.bias.mul_(factor)
    batches = [torch.rand(n, 3, 64, 64, generator=generator) for n in (32, 4, 4, 4, 4)]
    program = quantized(model, passes, batches[1:])
    with torch.no_grad():
        return sqnr(model(batches[0]), program(batches[0]))


def quantized(model: nn.Module, passes: str, batches: list[Tensor]) -> Program:
    """The pipeline of the `onnx` backend with more passes in it; every promise is proved."""
    profile = plugins.load("backends", "onnx").profile
    text = f"fuse-affine,{passes}legalize,quantize"
    steps = parse_passes(text, profile=profile, calibration=batches)
    return fuseq.Pipeline(steps).run(fuseq.capture(model, batches[0]))


def sqnr(expected: Tensor, actual: Tensor) -> float:
    """Power of a signal over that of its error, in dB."""
    return 10 * math.log10(float(expected.square().sum() / (expected - actual).square().sum()))


if __name__ == "__main__":
    main()
