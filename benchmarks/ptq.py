"""What data alone gives: SQNR, PSNR and time of each aid of post-training quantization.

    python -m benchmarks.ptq
    python -m benchmarks.ptq --adaround 2000

Networks: examples/sisr_x3 with its 32 calibration images, on its 32 held-out ones; others of
tests/networks with random weights, on smooth random images, 32 to calibrate and 32 held out. SQNR
is that of the outputs for held-out images, against the float network. Time is CPU time of the
passes from `legalize` on.

AdaRound is the reference for `round-weights`: Nagel et al. 2020, "Up or Down? Adaptive Rounding
for Post-Training Quantization", trained with Adam as it says there, layer by layer, with the input
of the integer network, the output of the float one, and the activation in the loss.
"""

from __future__ import annotations

import argparse
import importlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

import fuseq
from fuseq import plugins
from fuseq.pass_spec import parse_passes
from fuseq.program import Program
from fuseq.quant.executor import Quantized
from fuseq.quant.refine import Layer, Study, refine
from fuseq.quant.sensitivity import sensitivities
from fuseq.rewrite import Pass
from fuseq.user_code import load_function

SISR = Path(__file__).parents[1] / "examples" / "sisr_x3" / "model.py"
NETWORKS = ["sisr_x3", "mobilenet_v2", "unet", "gated", "resnet"]
ARRANGEMENTS = [
    "legalize,quantize",
    "legalize,quantize{observer=percentile}",
    "legalize,quantize{observer=mse}",
    "equalize,legalize,quantize",
    "legalize,quantize,correct-bias",
    "legalize,quantize,round-weights",
    "legalize,quantize,round-weights,correct-bias",
    "equalize,legalize,quantize{observer=mse},round-weights",
    "legalize,quantize{worst=2,worst_as=int16}",
    "legalize,quantize{worst=2,worst_as=float}",
]


@dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        name: for the table.
        program: fused.
        calibration: batches of one image.
        held_out: images `[N, 3, H, W]`.
        psnr: metric of a function from image to image, or None.
    """

    name: str
    program: Program
    calibration: list[Tensor]
    held_out: Tensor
    psnr: Callable[[Callable[[Tensor], Tensor]], float] | None


def main() -> None:
    """Print a table for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    parser.add_argument("--adaround", type=int, default=0, metavar="STEPS")
    options = parser.parse_args()
    for name in options.networks:
        case = super_resolution() if name == "sisr_x3" else of_tests(name)
        print(f"\n{case.name:60}{'SQNR dB':>8}{'PSNR dB':>9}{'CPU s':>7}")
        if case.psnr:
            print(f"{'float':68}{case.psnr(case.program.module):9.3f}")
        rows = [(text, with_data(text, case)) for text in ARRANGEMENTS]
        if options.adaround:
            reference = AdaRound(options.adaround, case.calibration)
            steps = [*with_data("legalize,quantize", case), reference]
            rows.append((f"legalize,quantize,AdaRound of {options.adaround} steps", steps))
        for text, passes in rows:
            show(case, text, passes)
        quantized = fuseq.quantize(case.program, calibration=case.calibration)
        parts = sensitivities(quantized, case.calibration)
        calibration = torch.cat(case.calibration)
        print(
            f"noise of the parts, added up: {-10 * math.log10(sum(p.noise for p in parts)):.1f} dB;"
            f" of the whole: {sqnr(case.program, quantized, calibration):.1f} dB",
            flush=True,
        )


def with_data(text: str, case: Case) -> list[Pass]:
    """Passes with their target and data."""
    profile = plugins.load("backends", "onnx").profile
    return parse_passes(text, profile=profile, calibration=case.calibration)


def show(case: Case, text: str, passes: list[Pass]) -> None:
    """Run passes and print a row."""
    start = time.process_time()
    program = fuseq.Pipeline(passes, prove=False).run(case.program)
    seconds = time.process_time() - start
    psnr = f"{case.psnr(program):9.3f}" if case.psnr else " " * 9
    level = sqnr(case.program, program, case.held_out)
    print(f"{text:60}{level:8.2f}{psnr}{seconds:7.1f}", flush=True)


def sqnr(reference: Program, program: Program, images: Tensor) -> float:
    """Power of the first output over that of its error, in dB."""
    with torch.no_grad():
        expected, actual = reference.module(images), program(images)
    if isinstance(expected, tuple):
        expected, actual = expected[0], actual[0]
    noise = (expected - actual).double().square().sum()
    return 10 * math.log10(float(expected.double().square().sum() / noise))


def super_resolution() -> Case:
    """examples/sisr_x3, trained."""
    module, get_model = load_function(str(SISR), "get_model")
    data: Any = module._data()
    pairs = list(data.generated_pairs(module.HELD_OUT_SEEDS))
    held_out = torch.stack([torch.from_numpy(data.images.to_planes(low)) for low, _ in pairs])

    def psnr(run: Callable[[Tensor], Tensor]) -> float:
        with torch.no_grad():
            outputs = [run(x[None])[0].numpy().transpose(1, 2, 0) for x in held_out]
        found = [
            data.psnr(data.images.to_pixels(y), high)
            for y, (_, high) in zip(outputs, pairs, strict=True)
        ]
        return float(sum(found) / len(found))

    calibration = list(module.calibration_data())
    program = fuseq.fuse(get_model(), calibration[0], prove=False)
    return Case("examples/sisr_x3", program, calibration, held_out, psnr)


def of_tests(name: str) -> Case:
    """A network of tests/networks, with random weights."""
    generator = torch.Generator().manual_seed(0)

    def images() -> Tensor:
        coarse = torch.rand(32, 3, 16, 16, generator=generator)
        smooth = F.interpolate(coarse, scale_factor=4, mode="bicubic")
        grain = 0.05 * torch.randn(smooth.shape, generator=generator)
        return (smooth + grain).clamp(0, 1)

    calibration, held_out = list(torch.split(images(), 1)), images()
    model = importlib.import_module(f"tests.networks.{name}").small()
    program = fuseq.fuse(model, calibration[0], prove=False)
    return Case(f"tests/networks/{name}", program, calibration, held_out, None)


@dataclass(frozen=True)
class AdaRound(Pass):
    """The reference.

    Attributes:
        steps: of Adam, for each layer.
        calibration: batches of inputs.
    """

    name: ClassVar[str] = "adaround"
    promise: ClassVar[fuseq.Promise] = fuseq.NewFunction("learns to round up or down")

    steps: int
    calibration: Iterable[Any] = field(repr=False)

    def run(self, program: Program) -> int:
        """Set `program.quantization`; returns the number of output channels that changed."""
        table = program.quantization
        assert table is not None

        def study(layer: Layer) -> Study:
            absorbed = (table.absorbed or {}).get(layer.node.name, layer.node.name)
            grid = table.grids[absorbed]
            ends = [float(grid.scale) * (q - int(grid.zero_point)) for q in (grid.qmin, grid.qmax)]
            return LearnedRounding(layer, self.steps, (ends[0], ends[1]))

        program.quantization, found = refine(program, "weight", study, self.calibration)
        return sum(record.channels for record in found)


class LearnedRounding(Study):
    """Rectified sigmoids between down and up: equations 21 to 25 of the paper."""

    def __init__(self, layer: Layer, steps: int, ends: tuple[float, float]) -> None:
        self.layer, self.steps, self.ends = layer, steps, ends
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def update(self, x: Quantized, y: Tensor) -> None:
        """Keep the batch."""
        self.inputs.append(x.grid.dequantize(x.q))
        self.outputs.append(y.clamp(*self.ends))

    def proposal(self) -> Tensor:
        """Train, then take the nearer of down and up."""
        with torch.enable_grad():
            return self._learned()

    def _learned(self) -> Tensor:
        layer = self.layer
        weight = layer.module.weight.detach()
        scale = layer.weight_grid.scale.reshape(-1, *[1] * (weight.dim() - 1))
        down = torch.floor(weight / scale)
        rest = (weight / scale - down).clamp(0.01, 0.99)
        logits = (-torch.log(1.2 / (rest + 0.1) - 1)).requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=1e-2)
        generator = torch.Generator().manual_seed(0)
        for step in range(self.steps):
            index = int(torch.randint(len(self.inputs), (1,), generator=generator))
            up = (torch.sigmoid(logits) * 1.2 - 0.1).clamp(0, 1)
            parameters = {"weight": scale * (down + up).clamp(-127, 127)}
            if layer.bias is not None and layer.bias_grid is not None:
                parameters["bias"] = layer.bias_grid.dequantize(layer.bias)
            y = functional_call(layer.module, parameters, self.inputs[index])
            error = (y.clamp(*self.ends) - self.outputs[index]).square()
            loss = error.sum(layer.axis).mean()
            progress = step / self.steps
            if progress > 0.2:
                beta = 20 - 18 * (progress - 0.2) / 0.8
                loss = loss + 0.01 * (1 - (2 * up - 1).abs() ** beta).sum() * self._unit()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        up = (torch.sigmoid(logits.detach()) > 0.5).float()
        return (down + up).clamp(-127, 127).to(torch.int8)

    def _unit(self) -> float:
        """Error of nearest rounding per weight: makes 0.01 mean the same for every layer."""
        scale = self.layer.weight_grid.scale
        power = float(torch.cat([x.square().mean().reshape(1) for x in self.inputs]).mean())
        return float(scale.square().mean()) * power


if __name__ == "__main__":
    main()
