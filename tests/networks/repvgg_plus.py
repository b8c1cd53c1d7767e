"""RepVGGplus and D2SE (arXiv 2101.03697 and its repository's notes): squeeze-excite in the block.

D2SE gates the sum of the branches, RepVGGplus what comes out of the activation.
"""

import torch
from torch import Tensor, nn

from tests.networks.randomize import randomized


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels // 4, 1)
        self.up = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = nn.functional.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.up(torch.relu(self.down(scale))))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, before: bool, after: bool) -> None:
        super().__init__()
        self.dense = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.dense_bn = nn.BatchNorm2d(outputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.pointwise_bn = nn.BatchNorm2d(outputs)
        self.identity_bn = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None
        self.before = SqueezeExcite(outputs) if before else nn.Identity()
        self.after = SqueezeExcite(outputs) if after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.dense_bn(self.dense(x)) + self.pointwise_bn(self.pointwise(x))
        if self.identity_bn is not None:
            out += self.identity_bn(x)
        return self.after(torch.relu(self.before(out)))


class RepVGGPlus(nn.Module):
    def __init__(self, before: bool, after: bool) -> None:
        super().__init__()
        sizes = ((3, 16, 2), (16, 32, 2), (32, 32, 1), (32, 48, 2), (48, 48, 1), (48, 48, 1))
        self.blocks = nn.Sequential(*(Block(*size, before, after) for size in sizes))
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


def d2se() -> nn.Module:
    return randomized(RepVGGPlus(before=True, after=False))


def small() -> nn.Module:
    return randomized(RepVGGPlus(before=False, after=True))
