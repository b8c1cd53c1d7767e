"""How far each op on the HTP emulator is from exact reals, rounded once: the table of tolerances.

    python -m benchmarks.htp_steps [--dtype uint16] [--chip sm8450]

Each op stands between two convolutions on noise of 64x64 pixels, and starts from the integers that
the HTP itself computed before it. Printed are the share of values that differ, and the largest
difference in steps of the op's grid, as `backends/qnn/tolerances.py` has them. It takes
onnxruntime-qnn on Linux x86-64, and two minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import fuseq
from fuseq.backends.qnn import QnnBackend
from fuseq.backends.qnn.chip_checks import shown_integers
from fuseq.backends.qnn.chips import chip
from fuseq.backends.qnn.htp_runner import HtpRunner
from fuseq.backends.qnn.op_steps import OpSteps, op_steps
from fuseq.errors import FuseqError

GAIN = 2.5
"""Of random weights, so that values reach the bends of the activations."""


class One(nn.Module):
    """A convolution, a function of one value, a convolution."""

    def __init__(self, function: Callable[[Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.function = function
        self.last = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[N, 3, H, W]` to maps of 4 channels."""
        result: Tensor = self.last(self.function(self.first(x)))
        return result


class Two(nn.Module):
    """Two convolutions, a function of both, a convolution."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        self.left, self.right = (nn.Conv2d(3, 8, 3, padding=1) for _ in range(2))
        self.function = function
        self.last = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[N, 3, H, W]` to maps of 4 channels."""
        result: Tensor = self.last(self.function(self.left(x), self.right(x)))
        return result


def _pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 64)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: One(nn.Conv2d(8, 8, 3, padding=1)),
    "depthwise": lambda: One(nn.Conv2d(8, 8, 3, padding=1, groups=8)),
    "transposed": lambda: One(nn.ConvTranspose2d(8, 8, 2, 2)),
    "relu": lambda: One(nn.ReLU()),
    "relu6": lambda: One(nn.ReLU6()),
    "leaky relu": lambda: One(nn.LeakyReLU(0.1)),
    "prelu": lambda: One(nn.PReLU(8)),
    "hard swish": lambda: One(nn.Hardswish()),
    "hard sigmoid": lambda: One(nn.Hardsigmoid()),
    "gelu": lambda: One(nn.GELU()),
    "silu": lambda: One(nn.SiLU()),
    "tanh": lambda: One(nn.Tanh()),
    "sigmoid": lambda: One(nn.Sigmoid()),
    "softmax": lambda: One(nn.Softmax(1)),
    "sum": lambda: Two(torch.add),
    "difference": lambda: Two(torch.sub),
    "product": lambda: Two(torch.mul),
    "quotient": lambda: Two(lambda a, b: a / (b.sigmoid() + 0.5)),
    "matrix product": lambda: Two(lambda a, b: a @ b),
    "concat": lambda: Two(lambda a, b: torch.cat([a, b * 3.0], 1), 16),
    "max pool": lambda: One(nn.MaxPool2d(2)),
    "average pool": lambda: One(nn.AvgPool2d(3, 1, 1)),
    "global pool": _pooled,
    "nearest": lambda: One(nn.Upsample(scale_factor=2)),
    "bilinear": lambda: One(nn.Upsample(scale_factor=2, mode="bilinear")),
    "shuffle": lambda: One(nn.PixelShuffle(2), 2),
    "unshuffle": lambda: One(nn.PixelUnshuffle(2), 32),
    "instance norm": lambda: One(nn.InstanceNorm2d(8, affine=True)),
    "pad": lambda: One(nn.ZeroPad2d(1)),
}


def measure(name: str, dtype: str, chip_name: str) -> list[OpSteps]:
    """Steps of every value of one network."""
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(GAIN if parameter.dim() > 1 else 1.0)
    image = (torch.rand(1, 3, 64, 64),)
    backend = QnnBackend(chips=(chip_name,))
    passes = f"fuse-affine,legalize,quantize{{activation={dtype}}}"
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "out"
        bundle = fuseq.lower(
            model, image, backend=backend, out=out, calibration=[image], passes=passes, check=False
        )
        assert bundle.program is not None
        file = bundle.file("int8")
        assert file is not None
        shown = shown_integers(bundle.program, HtpRunner(file, chip(chip_name)))
        return op_steps(bundle.program, shown, image)


def main() -> None:
    """Print one line for each op."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="uint8")
    parser.add_argument("--chip", default="sm8750")
    chosen = parser.parse_args()
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for name in NETWORKS:
        try:
            for each in measure(name, chosen.dtype, chosen.chip):
                found[each.op].append(each.steps.reshape(-1))
        except FuseqError as error:
            print(f"{name}: {error.what}")
    for op, steps in sorted(found.items()):
        every = np.concatenate(steps)
        print(f"{op:18}{np.mean(every > 0):9.3%} differ, at most {every.max()}, of {every.size}")


if __name__ == "__main__":
    main()
