"""FastViT (arXiv 2303.14189): x + scale * (mix(x) - norm(x)), patch embeddings of large kernels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.mobileone import MobileOneBlock
from tests.networks.randomize import randomized


class RepMixer(nn.Module):
    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.mix = MobileOneBlock(channels, channels, kernel, groups=channels, branches=1)
        self.mix.activation = nn.Identity()  # type: ignore[assignment]
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * (self.mix(x) - self.norm(x))


class FeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.expand, self.project = (
            nn.Conv2d(channels, 3 * channels, 1),
            nn.Conv2d(3 * channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.gelu(self.expand(self.norm(self.spread(x)))))


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mixer, self.feed = RepMixer(channels), FeedForward(channels)
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixer(x)
        return x + self.scale * self.feed(x)


class PatchEmbedding(nn.Module):
    """A large and a small depthwise kernel with a stride, summed, then a 1 x 1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.large = nn.Conv2d(inputs, outputs, 7, 2, 3, groups=inputs, bias=False)
        self.large_bn = nn.BatchNorm2d(outputs)
        self.small = nn.Conv2d(inputs, outputs, 3, 2, 1, groups=inputs, bias=False)
        self.small_bn = nn.BatchNorm2d(outputs)
        self.pointwise = MobileOneBlock(outputs, outputs, 1, branches=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.large_bn(self.large(x)) + self.small_bn(self.small(x)))


class FastViT(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            MobileOneBlock(3, width, 3, 2, branches=1),
            MobileOneBlock(width, width, 3, 2, groups=width, branches=1),
            MobileOneBlock(width, width, 1, branches=1),
        )
        self.body = nn.Sequential(
            Block(width), Block(width), PatchEmbedding(width, 2 * width), Block(2 * width)
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def small() -> nn.Module:
    return randomized(FastViT())
