"""The x3 super-resolution student of arXiv 2604.20291, in its multi-branch training form.

    f_0 = stem(x)                     3x3 convolution, 3 -> 32 channels
    f_k = block_k(f_(k-1))            k = 1..8
    y   = shuffle(head(f_8 + f_0))    3x3 convolution, 32 -> 27 channels, then PixelShuffle(3)

A block adds four 3x3 convolutions, one 1x1 convolution and the identity, each followed by batch
normalization, and applies ReLU. In inference it equals a single 3x3 convolution and ReLU: 42
convolutions become 10, and 314,875 parameters become 82,683.
"""

import importlib.util
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

HERE = Path(__file__).parent
CALIBRATION_SEEDS = range(80_000, 80_032)
HELD_OUT_SEEDS = range(90_000, 90_032)


class Block(nn.Module):
    """Parallel branches, six of them by default, each with batch normalization, then ReLU."""

    def __init__(self, channels: int, branches: int = 4) -> None:
        """Create a block of ``branches`` 3x3 branches, one 1x1 branch and the identity."""
        super().__init__()
        self.conv3x3 = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
            )
            for _ in range(branches)
        )
        self.conv1x1 = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.identity = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, channels, H, W)`` to the same shape."""
        y = self.identity(x) + self.conv1x1(x)
        for branch in self.conv3x3:
            y = y + branch(x)
        return torch.relu(y)


class DepthwiseBlock(nn.Module):
    """Depthwise 3x3, 1x1 and identity, ReLU, then pointwise 1x1 and identity, ReLU."""

    def __init__(self, channels: int) -> None:
        """Create the five branches, each with batch normalization."""
        super().__init__()
        self.conv3x3 = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.conv1x1 = nn.Sequential(
            nn.Conv2d(channels, channels, 1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.identity = nn.BatchNorm2d(channels)
        self.pointwise = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.pointwise_identity = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, channels, H, W)`` to the same shape."""
        y = torch.relu(self.conv3x3(x) + self.conv1x1(x) + self.identity(x))
        return torch.relu(self.pointwise(y) + self.pointwise_identity(y))


BLOCKS: dict[str, Callable[[int], nn.Module]] = {
    "MobileOne": Block,
    "RepConv": partial(Block, branches=1),
    "RepDW": DepthwiseBlock,
}


class SuperResolution(nn.Module):
    """Enlarge an RGB image three times."""

    def __init__(self, channels: int = 32, blocks: int = 8, block: str = "MobileOne") -> None:
        """Create the network with PyTorch's default initialization.

        Args:
            channels: Between stem and head.
            blocks: Number of blocks.
            block: One of `BLOCKS`.
        """
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(BLOCKS[block](channels) for _ in range(blocks)))
        self.head = nn.Conv2d(channels, 27, 3, padding=1)
        self.shuffle = nn.PixelShuffle(3)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, 3, H, W)`` in 0..1 to ``(N, 3, 3H, 3W)``, close to 0..1."""
        features = self.stem(x)
        output: Tensor = self.shuffle(self.head(self.blocks(features) + features))
        return output


def get_model(pretrained: bool = True) -> nn.Module:
    """Return the network, in evaluation mode, float32.

    Args:
        pretrained: Load the weights committed beside this file; otherwise they are random.
    """
    model = SuperResolution()
    if pretrained:
        # The file keeps convolutions in float16 to stay small; loading converts them.
        model.load_state_dict(load_file(HERE / "weights.safetensors"))
    return model.eval()


def example_inputs() -> tuple[Tensor, ...]:
    """Return one input ``(1, 3, 64, 64)`` in 0..1, the same each time."""
    return (torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)),)


def calibration_data() -> Iterator[Tensor]:
    """Yield 32 low-resolution dead-leaves images ``(1, 3, 64, 64)`` in 0..1."""
    data = _data()
    for low, _ in data.generated_pairs(CALIBRATION_SEEDS):
        yield torch.from_numpy(data.images.to_planes(low))[None]


def preprocess(image: Image.Image) -> Tensor:
    """Turn an image into planes ``(3, height, width)`` in 0..1."""
    return torch.from_numpy(_data().images.to_planes(np.asarray(image.convert("RGB"))))


def evaluate(run: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> dict[str, float]:
    """Measure a network on 32 held-out dead-leaves images.

    Args:
        run: Maps ``(1, 3, 64, 64)`` in 0..1 to ``(1, 3, 192, 192)``.

    Returns:
        ``psnr`` (RGB, in dB) and ``ssim`` of ``run``, and ``psnr_bicubic`` of bicubic
        interpolation: means over the images, of the 8-bit result, three border pixels shaved.
    """
    data, pairs = _data(), _held_out(HELD_OUT_SEEDS)
    bicubic = np.mean([data.psnr(data.bicubic(low), high) for low, high in pairs])
    return {**data.quality.measure(run, pairs, data.SCALE), "psnr_bicubic": float(bicubic)}


@cache
def _held_out(seeds: range) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    return list(_data().generated_pairs(seeds))


@cache
def _data() -> ModuleType:
    """Load the ``data.py`` beside this file, whatever else is called ``data`` elsewhere."""
    spec = importlib.util.spec_from_file_location("sisr_x3_data", HERE / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
