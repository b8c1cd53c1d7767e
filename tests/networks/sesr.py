"""SESR (arXiv 2103.09404): wide k x k then 1 x 1 without activation, residuals inside the block."""

import torch
from torch import Tensor, nn

from tests.networks.randomize import randomized


class CollapsibleBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, activate: bool = True) -> None:
        super().__init__()
        self.expand = nn.Conv2d(inputs, 128, kernel, padding=kernel // 2, bias=False)
        self.project = nn.Conv2d(128, outputs, 1)
        self.residual = inputs == outputs
        self.activation = nn.PReLU(outputs) if activate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.expand(x))
        return self.activation(out + x if self.residual else out)


class SESR(nn.Module):
    def __init__(self, channels: int = 16, blocks: int = 3, scale: int = 2) -> None:
        super().__init__()
        self.head = CollapsibleBlock(1, channels, 5)
        self.body = nn.Sequential(*(CollapsibleBlock(channels, channels, 3) for _ in range(blocks)))
        self.tail = CollapsibleBlock(channels, scale**2, 5, activate=False)
        self.upscale = nn.PixelShuffle(scale)

    def forward(self, image: Tensor) -> Tensor:
        luma = image.mean(1, keepdim=True)
        first = self.head(luma)
        return self.upscale(torch.add(self.tail(self.body(first) + first), luma))


def small() -> nn.Module:
    return randomized(SESR(), gain=0.3)
