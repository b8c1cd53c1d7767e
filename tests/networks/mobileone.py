"""MobileOne: sums of k x k, 1 x 1 and identity branches, depthwise and pointwise, with SE."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from tests.networks.randomize import randomized


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, ratio: float = 0.25) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, int(channels * ratio), 1)
        self.expand = nn.Conv2d(int(channels * ratio), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.mean((2, 3), keepdim=True)
        scale = torch.relu(self.reduce(scale))
        return x * torch.sigmoid(self.expand(scale))


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> nn.Sequential:
    conv = nn.Conv2d(
        inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class MobileOneBlock(nn.Module):
    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        branches: int = 2,
        se: bool = False,
    ) -> None:
        super().__init__()
        self.skip = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None
        self.scale = conv_bn(inputs, outputs, 1, stride, groups) if kernel > 1 else None
        self.convs = nn.ModuleList(
            conv_bn(inputs, outputs, kernel, stride, groups) for _ in range(branches)
        )
        self.se = SqueezeExcite(outputs) if se else nn.Identity()
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = 0 if self.skip is None else self.skip(x)
        if self.scale is not None:
            out += self.scale(x)
        for conv in self.convs:
            out += conv(x)
        return self.activation(self.se(out))


class MobileOne(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (8, 16, 24), classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = [MobileOneBlock(3, widths[0], 3, stride=2)]
        for index, (a, b) in enumerate(pairwise(widths)):
            last = index == len(widths) - 2
            for inputs, stride in ((a, 2), (b, 1)):
                layers.append(MobileOneBlock(inputs, inputs, 3, stride, groups=inputs, se=last))
                layers.append(MobileOneBlock(inputs, b, 1, se=last))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


class MobileOneS0(nn.Module):
    """MobileOne-s0 of arXiv 2206.04040: four branches a block, 5.3 M parameters in training."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [MobileOneBlock(3, 48, 3, stride=2, branches=4)]
        inputs = 48
        for outputs, depth in ((48, 2), (128, 8), (256, 10), (1024, 1)):
            for index in range(depth):
                stride = 1 if index else 2
                layers += [
                    MobileOneBlock(inputs, inputs, 3, stride, groups=inputs, branches=4),
                    MobileOneBlock(inputs, outputs, 1, branches=4),
                ]
                inputs = outputs
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


def small() -> nn.Module:
    return randomized(MobileOne())


def s0() -> nn.Module:
    return randomized(MobileOneS0())
