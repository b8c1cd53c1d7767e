"""ECBSR (10.1145/3474085.3475291): a 3 x 3, a 1 x 1 then 3 x 3, and three fixed edge masks.

A 1 x 1 with a bias stands before each padded 3 x 3, so its map is padded with that bias.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.randomize import randomized

MASKS = {
    "sobel-x": ((1.0, 0.0, -1.0), (2.0, 0.0, -2.0), (1.0, 0.0, -1.0)),
    "sobel-y": ((1.0, 2.0, 1.0), (0.0, 0.0, 0.0), (-1.0, -2.0, -1.0)),
    "laplacian": ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0)),
}


def pad_with(x: Tensor, bias: Tensor) -> Tensor:
    """One row and column on each side, holding the bias."""
    x = F.pad(x, (1, 1, 1, 1))
    border = bias.view(1, -1, 1, 1)
    x[:, :, :1, :] = border
    x[:, :, -1:, :] = border
    x[:, :, :, :1] = border
    x[:, :, :, -1:] = border
    return x


class PointwiseThenDense(nn.Module):
    def __init__(self, inputs: int, outputs: int, expand: int) -> None:
        super().__init__()
        self.pointwise = nn.Conv2d(inputs, expand, 1)
        self.dense = nn.Conv2d(expand, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert self.pointwise.bias is not None
        return self.dense(pad_with(self.pointwise(x), self.pointwise.bias))


class PointwiseThenMask(nn.Module):
    mask: Tensor

    def __init__(self, inputs: int, outputs: int, kind: str) -> None:
        super().__init__()
        self.pointwise = nn.Conv2d(inputs, outputs, 1)
        self.scale = nn.Parameter(torch.ones(outputs, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("mask", torch.tensor(MASKS[kind]).expand(outputs, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        assert self.pointwise.bias is not None
        x = pad_with(self.pointwise(x), self.pointwise.bias)
        return F.conv2d(x, self.scale * self.mask, self.bias, groups=x.shape[1])


class EdgeOrientedBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, activate: bool = True) -> None:
        super().__init__()
        self.dense = nn.Conv2d(inputs, outputs, 3, 1, 1)
        self.branches = nn.ModuleList(
            [
                PointwiseThenDense(inputs, outputs, 2 * outputs),
                *(PointwiseThenMask(inputs, outputs, kind) for kind in MASKS),
            ]
        )
        self.activation = nn.PReLU(outputs) if activate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.dense(x)
        for branch in self.branches:
            out = out + branch(x)
        return self.activation(out)


class ECBSR(nn.Module):
    def __init__(self, channels: int = 8, blocks: int = 2, scale: int = 2) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            EdgeOrientedBlock(3, channels),
            *(EdgeOrientedBlock(channels, channels) for _ in range(blocks)),
            EdgeOrientedBlock(channels, 3 * scale**2, activate=False),
        )
        self.upscale = nn.PixelShuffle(scale)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        skip = x.repeat_interleave(self.scale**2, 1)
        return self.upscale(self.backbone(x) + skip)


def small() -> nn.Module:
    return randomized(ECBSR(), gain=0.3)
