"""ACNet: 3 x 3 plus 3 x 1 plus 1 x 3, the narrow ones on an image cropped by negative padding."""

import torch
from torch import Tensor, nn

from tests.networks.randomize import randomized


class CropLayer(nn.Module):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        bottom, right = x.size(2) - self.rows, x.size(3) - self.columns
        return x[:, :, self.rows : bottom, self.columns : right]


class ACBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, padding: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.square_conv = nn.Conv2d(inputs, outputs, 3, stride, padding, bias=False)
        self.square_bn = nn.BatchNorm2d(outputs)
        # A 3 x 1 kernel reaches one column less to each side.
        side = padding - 1
        crop = max(0, -side)
        self.ver_crop = CropLayer(0, crop) if crop else nn.Identity()
        self.hor_crop = CropLayer(crop, 0) if crop else nn.Identity()
        self.ver_conv = nn.Conv2d(
            inputs, outputs, (3, 1), stride, (padding, max(0, side)), bias=False
        )
        self.hor_conv = nn.Conv2d(
            inputs, outputs, (1, 3), stride, (max(0, side), padding), bias=False
        )
        self.ver_bn = nn.BatchNorm2d(outputs)
        self.hor_bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        square = self.square_bn(self.square_conv(x))
        vertical = self.ver_bn(self.ver_conv(self.ver_crop(x)))
        horizontal = self.hor_bn(self.hor_conv(self.hor_crop(x)))
        return torch.relu(square + vertical + horizontal)


class ACNet(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            ACBlock(3, 8), ACBlock(8, 12, stride=2), nn.MaxPool2d(2), ACBlock(12, 16, padding=0)
        )
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean(dim=(2, 3)))


def small() -> nn.Module:
    return randomized(ACNet())
