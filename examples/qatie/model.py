"""QATIE (CVPRW 2026, arXiv 2604.21743): a phone photograph to the look of a better camera.

    g1, l1, r1 = down1(x)      S/2, 3 -> c       l = tanh(a(x)), r = tanh(b(x)), g = l * r
    s2 = refine(g1)            S/2, c -> c
    g2, l2, r2 = down2(s2)     S/4, c -> 2c
    s4 = refine(g2)            S/4, 2c -> 2c
    s8 = refine(pool(s4))      S/8, 2c -> 4c
    u4 = refine(mix([up(s8), s4, l2, r2]))       S/4, 8c -> 2c
    u2 = refine(mix([up(u4), s2, l1, r1]))       S/2, 4c -> c
    y  = clamp(x + head(up(u2)), 0, 1)

`refine` joins a 3x3 convolution with instance normalization and a 1x1 convolution by a concat;
`up` is nearest resizing to the size of the skip, then a 3x3 convolution; `mix` is a 1x1
convolution, `head` a 3x3 one. With c = 32 there are 915,331 parameters, as the paper has.

The structure is the paper's; images are generated here (see README.md).
"""

import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
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
TINT = (0.9, 0.8, 0.7)


class GatedDown(nn.Module):
    """Halve the size: two 3x3 convolutions with tanh, and their product."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Create both convolutions."""
        super().__init__()
        self.left = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.right = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map ``(N, inputs, H, W)`` to gate, left and right, ``(N, outputs, H / 2, W / 2)``."""
        left, right = torch.tanh(self.left(x)), torch.tanh(self.right(x))
        return left * right, left, right


class Refinement(nn.Module):
    """A normalized 3x3 branch beside a 1x1 one, then two 3x3 convolutions with a 1x1 residual."""

    def __init__(self, inputs: int, outputs: int, slope: float = 0.2) -> None:
        """Create the layers; ``slope`` is that of every leaky ReLU."""
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, padding=1),
            nn.InstanceNorm2d(inputs, affine=True),
            nn.LeakyReLU(slope),
        )
        self.shortcut = nn.Conv2d(inputs, inputs, 1)
        self.body = nn.Sequential(
            nn.Conv2d(2 * inputs, outputs, 3, padding=1),
            nn.LeakyReLU(slope),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.LeakyReLU(slope),
        )
        self.residual = nn.Conv2d(2 * inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, outputs, H, W)``."""
        both = torch.cat((self.branch(x), self.shortcut(x)), 1)
        refined: Tensor = self.body(both) + self.residual(both)
        return refined


class Up(nn.Module):
    """Nearest resizing to the size of another map, then a 3x3 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Create the convolution."""
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """Map ``(N, inputs, H, W)`` to ``(N, outputs)`` and the height and width of ``like``."""
        resized: Tensor = self.conv(F.interpolate(x, size=like.shape[-2:], mode="nearest"))
        return resized


class QATIE(nn.Module):
    """Enhance an RGB image."""

    def __init__(self, channels: int = 32) -> None:
        """Create the network with PyTorch's default initialization."""
        super().__init__()
        c = channels
        self.down1, self.down2 = GatedDown(3, c), GatedDown(c, 2 * c)
        self.refine_s2, self.refine_s4 = Refinement(c, c), Refinement(2 * c, 2 * c)
        self.pool, self.refine_s8 = nn.MaxPool2d(2), Refinement(2 * c, 4 * c)
        self.up_s4, self.mix_s4 = Up(4 * c, 2 * c), nn.Conv2d(8 * c, 2 * c, 1)
        self.up_s2, self.mix_s2 = Up(2 * c, c), nn.Conv2d(4 * c, c, 1)
        self.refine_u4, self.refine_u2 = Refinement(2 * c, 2 * c), Refinement(c, c)
        self.up_s1, self.head = Up(c, c), nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, 3, H, W)`` in 0..1 to the same, height and width 16 or more."""
        g1, l1, r1 = self.down1(x)
        s2 = self.refine_s2(g1)
        g2, l2, r2 = self.down2(s2)
        s4 = self.refine_s4(g2)
        s8 = self.refine_s8(self.pool(s4))
        u4 = self.refine_u4(self.mix_s4(torch.cat((self.up_s4(s8, s4), s4, l2, r2), 1)))
        u2 = self.refine_u2(self.mix_s2(torch.cat((self.up_s2(u4, s2), s2, l1, r1), 1)))
        delta = self.head(self.up_s1(u2, x))
        return torch.clamp(x + delta, 0.0, 1.0)


def get_model(channels: int = 16) -> nn.Module:
    """Return the network, in evaluation mode, float32.

    Args:
        channels: With 16, which is half of the paper's, the weights committed beside this file are
            loaded; with any other number, weights are random, and the same each time.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = QATIE(channels).eval()
    if channels == 16:
        model.load_state_dict(load_file(HERE / "weights.safetensors"))
    return model


def example_inputs() -> tuple[Tensor, ...]:
    """Return one photograph ``(1, 3, 96, 96)`` in 0..1, the same each time."""
    return (next(calibration_data()),)


def calibration_data() -> Iterator[Tensor]:
    """Yield 16 photographs of a phone ``(1, 3, 96, 96)`` in 0..1."""
    for phone, _ in pairs(CALIBRATION_SEEDS):
        yield torch.from_numpy(phone)[None]


def preprocess(image: Image.Image) -> Tensor:
    """Turn an image into planes ``(3, height, width)`` in 0..1."""
    return torch.from_numpy(to_planes(np.asarray(image.convert("RGB"))))


def evaluate(run: Run) -> dict[str, float]:
    """Measure a network on 16 held-out photographs.

    Args:
        run: Maps ``(1, 3, 96, 96)`` in 0..1 to the same.

    Returns:
        ``psnr`` (RGB, in dB) and ``ssim`` of ``run`` against the image of the better camera, means
        over the images, and ``psnr_phone`` of the photograph as it is.
    """
    photographs = _held_out()
    phone = measure(lambda x: x, photographs)["psnr"]
    return {**measure(run, photographs), "psnr_phone": phone}


@cache
def _held_out() -> list[Pair]:
    return list(photograph_pairs(HELD_OUT_SEEDS))


def photograph_pairs(seeds: Iterable[int]) -> Iterator[Pair]:
    """Yield what `pairs` yields as 8-bit images."""
    for phone, camera in pairs(seeds):
        yield to_pixels(phone.transpose(1, 2, 0)), to_pixels(camera.transpose(1, 2, 0))


def pairs(seeds: Iterable[int]) -> Iterator[tuple[Planes, Planes]]:
    """Yield generated photographs as a phone and as a better camera takes them.

    The camera's is a dead-leaves image. The phone's is darker, tinted, and noisy.

    Args:
        seeds: The same seed gives the same pair.

    Yields:
        Planes ``(3, 96, 96)`` in 0..1 of the phone, and of the camera.
    """
    tint = np.array(TINT, np.float32).reshape(3, 1, 1)
    for seed in seeds:
        camera = to_planes(dead_leaves(seed, SIZE))
        noise = np.random.default_rng(seed).normal(0, 0.02, camera.shape)
        phone = np.clip(tint * camera**1.4 + noise, 0, 1).astype(np.float32)
        yield phone, camera
