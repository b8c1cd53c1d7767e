"""QARepVGG (arXiv 2212.01593): norms on the 3 x 3 branch and after the sum, none on the others."""

import torch
from torch import Tensor, nn

from tests.networks.randomize import randomized


class QARepVGGBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1, average: bool = False) -> None:
        super().__init__()
        self.dense = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.dense_bn = nn.BatchNorm2d(outputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, stride)
        self.identity = inputs == outputs and stride == 1
        self.average = nn.AvgPool2d(3, stride, 1) if average and self.identity else None
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        out = self.dense_bn(self.dense(x)) + self.pointwise(x)
        if self.identity:
            out = out + x
        if self.average is not None:
            out = out + self.average(x)
        return torch.relu(self.bn(out))


def small() -> nn.Module:
    return randomized(
        nn.Sequential(
            QARepVGGBlock(3, 16, 2),
            QARepVGGBlock(16, 16),
            QARepVGGBlock(16, 32, 2),
            QARepVGGBlock(32, 32, average=True),
            QARepVGGBlock(32, 32, average=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 10),
        )
    )
