"""OREPA (arXiv 2204.00826): branches merged in the space of kernels, before each forward."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.randomize import randomized


class OREPA(nn.Module):
    prior: Tensor

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.origin = nn.Parameter(torch.empty(outputs, inputs, 3, 3))
        self.pointwise = nn.Parameter(torch.empty(outputs, inputs, 1, 1))
        self.average = nn.Parameter(torch.empty(outputs, inputs, 1, 1))
        self.frequency = nn.Parameter(torch.empty(outputs, inputs, 1, 1))
        self.squeeze = nn.Parameter(torch.empty(2 * inputs, inputs, 1, 1))
        self.expand = nn.Parameter(torch.empty(outputs, 2 * inputs, 3, 3))
        self.depthwise = nn.Parameter(torch.empty(8 * inputs, 1, 3, 3))
        self.separable = nn.Parameter(torch.empty(outputs, 8 * inputs, 1, 1))
        self.vector = nn.Parameter(torch.empty(6, outputs))
        self.bn = nn.BatchNorm2d(outputs)
        row = torch.arange(3.0).add(0.5).mul(torch.pi / 3)
        waves = [torch.outer(torch.cos(row * i), torch.cos(row * (1 - i))) for i in range(2)]
        order = torch.arange(outputs) % 2
        self.register_buffer("prior", torch.stack(waves)[order])

    def kernel(self) -> Tensor:
        inputs = self.origin.shape[1]
        repeated = torch.eye(inputs).to(self.origin).repeat_interleave(8, 0)  # (8 inputs, inputs)
        grouped = torch.einsum("mi,mhw->mihw", repeated, self.depthwise[:, 0])
        kernels = torch.stack(
            (
                self.origin,
                F.pad(self.pointwise, [1, 1, 1, 1]),
                torch.einsum(
                    "oi,hw->oihw", self.average[:, :, 0, 0], self.origin.new_full((3, 3), 1 / 9)
                ),
                torch.einsum("oi,ohw->oihw", self.frequency[:, :, 0, 0], self.prior),
                torch.einsum("mi,omhw->oihw", self.squeeze[:, :, 0, 0], self.expand),
                torch.einsum("mihw,om->oihw", grouped, self.separable[:, :, 0, 0]),
            )
        )
        return torch.einsum("boihw,bo->oihw", kernels, self.vector)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(F.conv2d(x, self.kernel(), stride=self.stride, padding=1)))


def small() -> nn.Module:
    return randomized(
        nn.Sequential(
            OREPA(3, 16, 2),
            OREPA(16, 16),
            OREPA(16, 32, 2),
            OREPA(32, 32),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, 10),
        )
    )
