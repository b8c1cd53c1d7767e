"""EFDN (arXiv 2204.08759): edge-enhanced diverse branch blocks that distill features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.ecbsr import MASKS, PointwiseThenDense, PointwiseThenMask
from tests.networks.randomize import randomized


class EDBB(nn.Module):
    """Seven branches: 3 x 3, 1 x 1, 1 x 1 then 3 x 3, three masks, and the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dense = nn.Conv2d(channels, channels, 3, 1, 1)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.sequence = PointwiseThenDense(channels, channels, 2 * channels)
        self.masks = nn.ModuleList(PointwiseThenMask(channels, channels, kind) for kind in MASKS)

    def forward(self, x: Tensor) -> Tensor:
        out = self.dense(x) + self.pointwise(x) + self.sequence(x)
        for mask in self.masks:
            out += mask(x)
        return out + x


class SpatialAttention(nn.Module):
    """A mask from a map of few channels, a stride, a wide pool and a bilinear way back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        few = channels // 4
        self.enter, self.skip = nn.Conv2d(channels, few, 1), nn.Conv2d(few, few, 1)
        self.stride = nn.Conv2d(few, few, 3, 2)
        self.body = nn.Conv2d(few, few, 3, padding=1)
        self.leave = nn.Conv2d(few, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        pooled = F.max_pool2d(self.stride(entered), kernel_size=7, stride=3)
        mask = F.interpolate(self.body(pooled), (x.size(2), x.size(3)), mode="bilinear")
        return x * torch.sigmoid(self.leave(mask + self.skip(entered)))


class DistillationBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        kept = channels // 2
        self.distill = nn.ModuleList(nn.Conv2d(channels, kept, 1) for _ in range(3))
        self.refine = nn.ModuleList(EDBB(channels) for _ in range(3))
        self.last = nn.Conv2d(channels, kept, 3, 1, 1)
        self.merge = nn.Conv2d(4 * kept, channels, 1)
        self.attention = SpatialAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        kept, rest = [], x
        for distill, refine in zip(self.distill, self.refine, strict=True):
            kept.append(F.gelu(distill(rest)))
            rest = F.gelu(refine(rest))
        kept.append(F.gelu(self.last(rest)))
        return self.attention(self.merge(torch.cat(kept, 1))) + x


class EFDN(nn.Module):
    def __init__(self, channels: int = 16, scale: int = 2) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, channels, 3, 1, 1)
        self.body = DistillationBlock(channels)
        self.merge = nn.Conv2d(channels, channels, 1)
        self.tail = nn.Conv2d(channels, 3 * scale**2, 3, 1, 1)
        self.upscale = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        first = self.head(x)
        return self.upscale(self.tail(F.gelu(self.merge(self.body(first))) + first))


def small() -> nn.Module:
    return randomized(EFDN(), gain=0.3)
