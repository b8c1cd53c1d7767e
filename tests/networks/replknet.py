"""RepLKNet (arXiv 2203.06717) and UniRepLKNet (arXiv 2311.15599): a large depthwise kernel, beside
it a small one and dilated ones, each with its own batch norm."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.randomize import randomized


def depthwise(channels: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    padding = dilation * (kernel - 1) // 2
    conv = nn.Conv2d(channels, channels, kernel, 1, padding, dilation, groups=channels, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels))


class DilatedReparameterization(nn.Module):
    """Kernel 13 holds (5, 1), (7, 2), (3, 3), (3, 4), (3, 5): sizes and dilations of the paper."""

    def __init__(self, channels: int, kernel: int = 13) -> None:
        super().__init__()
        self.large = depthwise(channels, kernel)
        self.others = nn.ModuleList(
            depthwise(channels, *size) for size in ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5))
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.large(x)
        for other in self.others:
            out = out + other(x)
        return out


class LargeAndSmall(nn.Module):
    def __init__(self, channels: int, large: int, small: int) -> None:
        super().__init__()
        self.large, self.small = depthwise(channels, large), depthwise(channels, small)

    def forward(self, x: Tensor) -> Tensor:
        return self.large(x) + self.small(x)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels // 4, 1)
        self.up = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return x * scale


class UniBlock(nn.Module):
    """The convolution, a norm, squeeze-excite, two linear layers on the last axis, layer scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = DilatedReparameterization(channels)
        self.norm, self.gate = nn.BatchNorm2d(channels), SqueezeExcite(channels)
        self.expand, self.project = (
            nn.Linear(channels, 4 * channels),
            nn.Linear(4 * channels, channels),
        )
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.gate(self.norm(self.conv(x))).permute(0, 2, 3, 1)
        out = self.project(F.gelu(self.expand(tokens)))
        return x + (self.scale * out).permute(0, 3, 1, 2)


class LargeKernelBlock(nn.Module):
    """Norm, 1 x 1, large depthwise, 1 x 1; then norm and two 1 x 1 of the feed-forward."""

    def __init__(self, channels: int, large: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.enter = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.large = LargeAndSmall(channels, large, 5)
        self.leave = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )
        self.feed = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, 2 * channels, 1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.GELU(),
            nn.Conv2d(2 * channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.leave(F.relu(self.large(self.enter(self.norm(x)))))
        return x + self.feed(x)


def stem(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, 4, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    )


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]


def small() -> nn.Module:
    blocks = [LargeKernelBlock(16, 13), LargeKernelBlock(16, 9)]
    return randomized(nn.Sequential(stem(16), *blocks, *head(16)))


def dilated() -> nn.Module:
    return randomized(nn.Sequential(stem(16), UniBlock(16), UniBlock(16), *head(16)))
