"""LeViT (arXiv 2104.01136): linear layers with batch norms over tokens, attention, residuals."""

import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.randomize import randomized


class ConvNorm(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        conv = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.Hardswish())


class LinearNorm(nn.Module):
    """Batch norm over all tokens of all images."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.norm(x.flatten(0, 1)).reshape_as(x)


class Attention(nn.Module):
    def __init__(self, channels: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.enter = LinearNorm(channels, 3 * channels)
        self.leave = LinearNorm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        parts = self.enter(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
        return self.leave(
            F.hardswish((weights @ value).transpose(1, 2).reshape(batch, tokens, channels))
        )


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = Attention(channels)
        self.expand, self.project = (
            LinearNorm(channels, 2 * channels),
            LinearNorm(2 * channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.project(F.hardswish(self.expand(x)))


class LeViT(nn.Module):
    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNorm(3, 8), ConvNorm(8, 12), ConvNorm(12, 16), ConvNorm(16, channels)
        )
        self.blocks = nn.Sequential(Block(channels), Block(channels))
        self.norm, self.head = nn.BatchNorm1d(channels), nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(tokens).mean(1)))


def small() -> nn.Module:
    return randomized(LeViT())
