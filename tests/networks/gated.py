"""Gates as QATIE, GLU networks and NAFNet have them: products of sibling convolutions."""

import torch
from torch import Tensor, nn

from tests.networks.randomize import randomized


class GatedDown(nn.Module):
    """Two strided convolutions, tanh on both, their product; both tanh values go on as a skip."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(inputs, outputs, 3, 2, 1)
        self.b = nn.Conv2d(inputs, outputs, 3, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        left, right = torch.tanh(self.a(x)), torch.tanh(self.b(x))
        return left * right, torch.cat((left, right), 1)


class SigmoidGate(nn.Module):
    """A 3x3 convolution, gated position by position by a 1x1 one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value, self.gate = (
            nn.Conv2d(channels, channels, 3, 1, 1),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * torch.sigmoid(self.gate(x))


class GLU(nn.Module):
    """Two branches, both with a batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1), nn.BatchNorm2d(channels))
        self.gate = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * self.gate(x).sigmoid()


class SimpleGate(nn.Module):
    """NAFNet's gate, its two halves as layers of their own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, 12, 3, 1, 1), nn.Conv2d(channels, 12, 3, 1, 1)
        self.project = nn.Conv2d(12, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.a(x) * self.b(x))


class Gated(nn.Module):
    """An encoder and decoder in the manner of QATIE, with the other gates at the bottom."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.down1, self.down2 = GatedDown(3, channels), GatedDown(channels, 2 * channels)
        self.bottom = nn.Sequential(
            SigmoidGate(2 * channels), GLU(2 * channels), SimpleGate(2 * channels)
        )
        self.mix2 = nn.Conv2d(6 * channels, channels, 1)
        self.mix1 = nn.Conv2d(3 * channels, channels, 1)
        self.head = nn.Conv2d(channels, 3, 3, 1, 1)
        self.up = nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        y, skip1 = self.down1(x)
        y, skip2 = self.down2(y)
        y = torch.relu(self.mix2(torch.cat((self.bottom(y), skip2), 1)))
        y = torch.relu(self.mix1(torch.cat((self.up(y), skip1), 1)))
        return self.head(self.up(y))


def small() -> nn.Module:
    return randomized(Gated())
