"""A U-Net for images: gated convolutions (tanh times sigmoid), concat skips, nearest upsampling."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.randomize import randomized


class GatedConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.features = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.gate = nn.Conv2d(inputs, outputs, 3, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.features(x)) * torch.sigmoid(self.gate(x))


class DoubleConv(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.LeakyReLU(0.1, inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class UNet(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inc = DoubleConv(3, width)
        self.down1 = GatedConv(width, 2 * width, stride=2)
        self.down2 = GatedConv(2 * width, 3 * width, stride=2)
        self.middle = DoubleConv(3 * width, 3 * width)
        self.up1 = DoubleConv(5 * width, 2 * width)
        self.up2 = DoubleConv(3 * width, width)
        self.outc = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.middle(self.down2(x2))
        up = F.interpolate(x3, scale_factor=2, mode="nearest")
        up = self.up1(torch.cat([x2, up], dim=1))
        up = self.up2(torch.cat([x1, F.interpolate(up, scale_factor=2)], dim=1))
        return x + self.outc(up)


def small() -> nn.Module:
    return randomized(UNet())
