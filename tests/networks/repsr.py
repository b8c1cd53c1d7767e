"""RepSR (arXiv 2205.05671): k x k, frozen-statistics batch norm, 1 x 1; twice, and an identity."""

import torch
from torch import Tensor, nn

from tests.networks.randomize import randomized


class Branch(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        wide = 2 * inputs
        super().__init__(
            nn.Conv2d(inputs, wide, 3, 1, 1), nn.BatchNorm2d(wide), nn.Conv2d(wide, outputs, 1)
        )


class RepSRBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = Branch(channels, channels), Branch(channels, channels)
        self.activation = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.first(x) + self.second(x) + x)


class RepSR(nn.Module):
    def __init__(self, channels: int = 16, scale: int = 2) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, channels, 3, 1, 1), nn.PReLU(channels))
        self.body = nn.Sequential(*(RepSRBlock(channels) for _ in range(4)))
        self.tail = nn.Conv2d(channels, 3 * scale**2, 3, 1, 1)
        self.upscale = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        base = nn.functional.interpolate(x, scale_factor=2, mode="nearest")
        return torch.add(self.upscale(self.tail(self.body(self.head(x)))), base)


def small() -> nn.Module:
    return randomized(RepSR(), gain=0.3)
