"""Diverse Branch Blocks: 1 x 1 then k x k behind a border that holds the bias, and averages."""

import torch
from torch import Tensor, nn

from tests.networks.randomize import randomized


class BNAndPad(nn.Module):
    """Batch norm, then a border of what batch norm makes of zero."""

    def __init__(self, pixels: int, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.pixels = pixels

    def forward(self, x: Tensor) -> Tensor:
        output = self.bn(x)
        if self.pixels > 0:
            mean, var = self.bn.running_mean, self.bn.running_var
            assert mean is not None
            assert var is not None
            pad_values = self.bn.bias - mean * self.bn.weight / torch.sqrt(var + self.bn.eps)
            output = nn.functional.pad(output, [self.pixels] * 4)
            pad_values = pad_values.view(1, -1, 1, 1)
            output[:, :, 0 : self.pixels, :] = pad_values
            output[:, :, -self.pixels :, :] = pad_values
            output[:, :, :, 0 : self.pixels] = pad_values
            output[:, :, :, -self.pixels :] = pad_values
        return output


class DiverseBranchBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.dbb_origin = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.dbb_1x1 = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )
        self.dbb_avg = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False),
            BNAndPad(1, outputs),
            nn.AvgPool2d(3, stride),
            nn.BatchNorm2d(outputs),
        )
        self.dbb_1x1_kxk = nn.Sequential(
            nn.Conv2d(inputs, inputs, 1, bias=False),
            BNAndPad(1, inputs),
            nn.Conv2d(inputs, outputs, 3, stride, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.dbb_origin(x)
        out += self.dbb_1x1(x)
        out += self.dbb_avg(x)
        out += self.dbb_1x1_kxk(x)
        return torch.relu(out)


class DBBNet(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = DiverseBranchBlock(3, 8, stride=2)
        self.body = DiverseBranchBlock(8, 16, stride=2)
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((-2, -1)))


def small() -> nn.Module:
    return randomized(DBBNet())
