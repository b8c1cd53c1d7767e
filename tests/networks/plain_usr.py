"""PlainUSR (arXiv 2409.13435): inverted bottlenecks that deploy as one 3 x 3, scaled by an
attention over their own parameters, and a gate read off the first channel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.randomize import randomized


class ParameterAttention(nn.Module):
    """Squeeze-excite of a learned vector: no data passes, so it is one constant per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.down = nn.Conv2d(channels, channels // 4, 1)
        self.up = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.silu(self.down(self.vector))))


class RepMBConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, expand: int = 2) -> None:
        super().__init__()
        wide = expand * outputs
        self.enter = nn.Conv2d(inputs, wide, 1)
        self.dense = nn.Conv2d(wide, wide, 3)
        self.attention = ParameterAttention(wide)
        self.leave = nn.Conv2d(wide, outputs, 1)
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.enter(F.pad(x, (1, 1, 1, 1)))
        inner = self.attention(self.dense(inner)) + inner[:, :, 1:-1, 1:-1]
        return self.leave(inner) + self.skip(x)


class LocalImportanceAttention(nn.Module):
    """A gate from the first channel, and a mask from a soft maximum over windows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 8, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, channels, 3, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.exp(x)
        soft = F.avg_pool2d(x * weight, 7, 3) / F.avg_pool2d(weight, 7, 3)
        mask = torch.sigmoid(self.body(soft))
        mask = F.interpolate(mask, x.shape[2:], mode="bilinear", align_corners=False)
        return x * mask * torch.sigmoid(x[:, :1])


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = RepMBConv(channels, channels), RepMBConv(channels, channels)
        self.attention = LocalImportanceAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.second(F.relu(self.first(x))))


class PlainUSR(nn.Module):
    def __init__(self, channels: int = 16, scale: int = 2) -> None:
        super().__init__()
        self.head = RepMBConv(3, channels)
        self.body = nn.Sequential(*(Block(channels) for _ in range(2)))
        self.tail = RepMBConv(channels, 3 * scale**2)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        first = self.head(x)
        out = self.body(first)
        # The first channel is carried around the body, so that the gate of the next one sees it.
        out = torch.cat([first[:, :1], out[:, 1:]], 1)
        return F.pixel_shuffle(self.tail(out), self.scale)


def small() -> nn.Module:
    return randomized(PlainUSR(), gain=0.3)
