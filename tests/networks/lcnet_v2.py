"""PP-LCNetV2: depthwise kernels 5, 3 and 1 with an identity, h-swish, squeeze-excite at the end.

Written after its description in the PaddleClas documentation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.randomize import randomized


class RepDepthwise(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, k, stride, k // 2, groups=channels, bias=False),
                nn.BatchNorm2d(channels),
            )
            for k in (5, 3, 1)
        )
        self.identity = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        out = x if self.identity else torch.zeros(())
        for conv in self.convs:
            out = out + conv(x)
        return out


class Unit(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1, gate: bool = False) -> None:
        super().__init__()
        self.depthwise = RepDepthwise(inputs, stride)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(inputs, inputs // 4, 1),
            nn.ReLU(),
            nn.Conv2d(inputs // 4, inputs, 1),
            nn.Hardsigmoid(),
        ) if gate else None  # fmt: skip
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.depthwise(x))
        if self.gate is not None:
            x = x * self.gate(x)
        return F.hardswish(self.norm(self.pointwise(x)))


def small() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
    units = [
        Unit(16, 32),
        Unit(32, 32, 2),
        Unit(32, 32),
        Unit(32, 48, 2, True),
        Unit(48, 48, 1, True),
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(48, 10)]
    return randomized(nn.Sequential(stem, *units, *head))
