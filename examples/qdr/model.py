"""QDR (arXiv 2603.09624): an edge-friendly network that restores images, with gates.

    f1 = encode1(stem(x))              S,    3 -> c
    f2 = encode2(down1(f1))            S/2,  c -> 2c
    b  = bottleneck(down2(f2))         S/4, 2c -> 4c
    d2 = decode2(up2(b) + gate2(f2))   S/2,  4c -> 2c
    d1 = decode1(up1(d2) + gate1(f1))  S,    2c -> c
    y  = x + head(d1)

The paper's, by its abstract: a network friendly to edge hardware (EFM), light learned gates that
modulate features place by place (LDG), and distillation from the same network in float, strictly
at the bottleneck.

Ours, since no text gives the layers: three scales of plain 3x3 convolutions, in blocks that can be
re-parameterized (a 3x3, a 1x1 and an identity branch, each with batch normalization, summed before
a ReLU: one convolution when fused); pixel shuffle upwards; sums instead of concats, whose operands
need no common scale; the gate's layers, and its places: on both skips, where the degraded image
would enter the decoder unfiltered, and at the end of the bottleneck; a global residual.
`bottleneck` is one module, and its output, `(N, 4c, H/4, W/4)`, is where distillation acts.
"""

import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "common"))  # what all examples share

from dead_leaves import dead_leaves
from images import Pair, Planes, to_pixels, to_planes
from quality import Run, measure

HERE = Path(__file__).parent
CALIBRATION_SEEDS = range(80_000, 80_016)
HELD_OUT_SEEDS = range(90_000, 90_016)
SIZE = 96
DEGRADATIONS = ("low light", "haze", "rain", "noise")


class Block(nn.Module):
    """A 3x3 and a 1x1 convolution and the identity, each normalized, summed before a ReLU."""

    def __init__(self, channels: int) -> None:
        """Create the three branches."""
        super().__init__()
        self.conv3x3 = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.conv1x1 = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.identity = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, channels, H, W)`` to the same shape."""
        return torch.relu(self.conv3x3(x) + self.conv1x1(x) + self.identity(x))


class DegradationGate(nn.Module):
    """Features times a learned weight in 0..1 for each place and channel.

    ``y = x * sigmoid(expand(relu(look(reduce(x)))))``: 1x1 to a quarter of the channels, depthwise
    3x3, 1x1 back.
    """

    def __init__(self, channels: int) -> None:
        """Create the three convolutions; ``channels`` is a multiple of 4."""
        super().__init__()
        inner = channels // 4
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.look = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.expand = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, channels, H, W)`` to the same shape."""
        return x * torch.sigmoid(self.expand(torch.relu(self.look(self.reduce(x)))))


class QDR(nn.Module):
    """Restore an RGB image."""

    def __init__(self, channels: int = 16, blocks: int = 4) -> None:
        """Create the network with PyTorch's default initialization.

        Args:
            channels: At full size, a multiple of 4.
            blocks: In the bottleneck; the other scales have one each way.
        """
        super().__init__()
        c = channels
        self.stem, self.encode1 = nn.Conv2d(3, c, 3, padding=1), Block(c)
        self.down1, self.encode2 = nn.Conv2d(c, 2 * c, 3, 2, 1), Block(2 * c)
        self.down2 = nn.Conv2d(2 * c, 4 * c, 3, 2, 1)
        self.bottleneck = nn.Sequential(
            *(Block(4 * c) for _ in range(blocks)), DegradationGate(4 * c)
        )
        self.up2, self.up1 = _up(4 * c, 2 * c), _up(2 * c, c)
        self.gate2, self.gate1 = DegradationGate(2 * c), DegradationGate(c)
        self.decode2, self.decode1 = Block(2 * c), Block(c)
        self.head = nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, 3, H, W)`` in 0..1 to the same, close to 0..1; sizes are multiples of 4."""
        f1 = self.encode1(self.stem(x))
        f2 = self.encode2(self.down1(f1))
        b = self.bottleneck(self.down2(f2))
        d2 = self.decode2(self.up2(b) + self.gate2(f2))
        d1 = self.decode1(self.up1(d2) + self.gate1(f1))
        restored: Tensor = x + self.head(d1)
        return restored


def _up(inputs: int, outputs: int) -> nn.Module:
    """Twice the size: a 1x1 convolution and a pixel shuffle."""
    return nn.Sequential(nn.Conv2d(inputs, 4 * outputs, 1), nn.PixelShuffle(2))


def get_model(pretrained: bool = True) -> nn.Module:
    """Return the network, in evaluation mode, float32.

    Args:
        pretrained: Load the weights committed beside this file; otherwise they are random, and the
            same each time.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = QDR().eval()
    if pretrained:
        # The file keeps convolutions in float16 to stay small; loading converts them.
        model.load_state_dict(load_file(HERE / "weights.safetensors"))
    return model


def example_inputs() -> tuple[Tensor, ...]:
    """Return one degraded image ``(1, 3, 96, 96)`` in 0..1, the same each time."""
    return (next(calibration_data()),)


def calibration_data() -> Iterator[Tensor]:
    """Yield 16 degraded images ``(1, 3, 96, 96)`` in 0..1, four of each degradation."""
    for degraded, _ in pairs(CALIBRATION_SEEDS):
        yield torch.from_numpy(degraded)[None]


def preprocess(image: Image.Image) -> Tensor:
    """Turn an image into planes ``(3, height, width)`` in 0..1, cut to multiples of 4."""
    width, height = (size - size % 4 for size in image.size)
    cut = image.convert("RGB").crop((0, 0, width, height))
    return torch.from_numpy(to_planes(np.asarray(cut)))


def evaluate(run: Run) -> dict[str, float]:
    """Measure a network on 16 held-out images.

    Args:
        run: Maps ``(1, 3, 96, 96)`` in 0..1 to the same.

    Returns:
        ``psnr`` (RGB, in dB) and ``ssim`` of ``run`` against the clean images, means over the
        images; ``psnr`` of each degradation; and ``psnr_degraded`` of the images as they are.
    """
    images = _held_out()
    degraded = measure(lambda x: x, images)["psnr"]
    return {**measure(run, images), "psnr_degraded": degraded}


@cache
def _held_out() -> list[Pair]:
    return list(image_pairs(HELD_OUT_SEEDS))


def image_pairs(seeds: Iterable[int]) -> Iterator[Pair]:
    """Yield what `pairs` yields as 8-bit images."""
    for degraded, clean in pairs(seeds):
        yield to_pixels(degraded.transpose(1, 2, 0)), to_pixels(clean.transpose(1, 2, 0))


def pairs(seeds: Iterable[int]) -> Iterator[tuple[Planes, Planes]]:
    """Yield dead-leaves images, degraded and clean; the degradations take turns.

    Args:
        seeds: The same seed gives the same pair.

    Yields:
        Planes ``(3, 96, 96)`` in 0..1, degraded and clean.
    """
    for seed in seeds:
        clean = to_planes(dead_leaves(seed, SIZE))
        kind = DEGRADATIONS[seed % len(DEGRADATIONS)]
        yield degrade(clean, kind, np.random.default_rng(seed)), clean


def degrade(clean: Planes, kind: str, random: np.random.Generator) -> Planes:
    """Degrade an image.

    Low light is ``x^2.2 / 3`` and noise. Haze is ``x t + 0.9 (1 - t)``, with a transmission ``t``
    that changes from top to bottom. Rain is bright strokes with one slant. Noise is Gaussian with
    a standard deviation of 0.1.

    Args:
        clean: Planes ``(3, H, W)`` in 0..1.
        kind: One of ``DEGRADATIONS``.
        random: Draws everything random.
    """
    _, height, width = clean.shape
    if kind == "low light":
        degraded = clean**2.2 / 3 + random.normal(0, 0.01, clean.shape)
    elif kind == "haze":
        top, bottom = random.uniform(0.3, 0.9, 2)
        transmission = np.linspace(top, bottom, height).reshape(1, height, 1)
        degraded = clean * transmission + 0.9 * (1 - transmission)
    elif kind == "rain":
        drops, slant = random.random((height, width)) < 0.004, int(random.integers(-1, 2))
        strokes = [np.roll(drops, (i, slant * i // 3), (0, 1)) for i in range(12)]
        degraded = clean + 0.5 * np.any(strokes, 0)
    else:
        degraded = clean + random.normal(0, 0.1, clean.shape)
    return np.clip(degraded, 0, 1).astype(np.float32)
