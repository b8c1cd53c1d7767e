"""SPAN (arXiv 2311.12770): Conv3XC pads, then runs 1 x 1, 3 x 3, 1 x 1; weightless attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.randomize import randomized


class Conv3XC(nn.Module):
    def __init__(self, inputs: int, outputs: int, gain: int = 2) -> None:
        super().__init__()
        self.skip = nn.Conv2d(inputs, outputs, 1)
        self.sequence = nn.Sequential(
            nn.Conv2d(inputs, gain * inputs, 1),
            nn.Conv2d(gain * inputs, gain * outputs, 3),
            nn.Conv2d(gain * outputs, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.sequence(F.pad(x, (1, 1, 1, 1))) + self.skip(x)


class AttentionBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Conv3XC(channels, channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        out = self.convs[1](F.silu(self.convs[0](x)))
        out = self.convs[2](F.silu(out))
        return (out + x) * (torch.sigmoid(out) - 0.5)


class SPAN(nn.Module):
    def __init__(self, channels: int = 12, scale: int = 2) -> None:
        super().__init__()
        self.head = Conv3XC(3, channels)
        self.blocks = nn.ModuleList(AttentionBlock(channels) for _ in range(3))
        self.last = Conv3XC(channels, channels)
        self.merge = nn.Conv2d(3 * channels, channels, 1)
        self.tail = nn.Sequential(
            nn.Conv2d(channels, 3 * scale**2, 3, 1, 1), nn.PixelShuffle(scale)
        )

    def forward(self, x: Tensor) -> Tensor:
        first = self.head(x)
        one = self.blocks[0](first)
        two = self.blocks[1](one)
        out = self.last(self.blocks[2](two))
        return self.tail(self.merge(torch.cat([first, out, one], 1)))


def small() -> nn.Module:
    return randomized(SPAN(), gain=0.3)
