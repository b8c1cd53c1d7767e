"""Convolutions whose kernels are computed from parameters in `forward` (weight standardization)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.randomize import randomized


class StdConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        weight = (self.weight - mean) / (std + 1e-6)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class StdNet(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = StdConv2d(3, 8, 3, 2, 1)
        self.conv2 = StdConv2d(8, 16, 3, 2, 1, groups=2, bias=False)
        self.skip = nn.Conv2d(8, 16, 1, 2)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.conv1(x)) * 0.5
        x = F.relu(self.norm(self.conv2(x)) + self.skip(x))
        return self.head(x.mean((2, 3)))


def small() -> nn.Module:
    return randomized(StdNet())
