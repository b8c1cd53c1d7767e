"""A decoder that upsamples by transposed convolutions, with branches, or by repeating pixels.

Half the blocks have two transposed branches with a batch norm each; the others upsample by the
nearest pixel and run a 3 x 3 beside a 1 x 1. A 1 x 1 with a batch norm stands before some.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.randomize import randomized


class TransposedBranches(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.wide = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)
        self.wide_bn = nn.BatchNorm2d(outputs)
        self.narrow = nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False)
        self.narrow_bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.wide_bn(self.wide(x)) + self.narrow_bn(self.narrow(x)))


class NearestBranches(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.dense_bn = nn.BatchNorm2d(outputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pointwise_bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.relu(self.dense_bn(self.dense(x)) + self.pointwise_bn(self.pointwise(x)))


class Autoencoder(nn.Module):
    def __init__(self, up: type[nn.Module], width: int = 12) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.Conv2d(2 * width, width, 1), nn.BatchNorm2d(width),
        )  # fmt: skip
        self.decoder = nn.Sequential(up(width, 2 * width), up(2 * width, width))
        self.image = nn.Conv2d(width, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.image(self.decoder(self.encoder(x))))


def small() -> nn.Module:
    return randomized(Autoencoder(TransposedBranches))


def nearest() -> nn.Module:
    return randomized(Autoencoder(NearestBranches))
