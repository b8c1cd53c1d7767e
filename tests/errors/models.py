"""Models that capture refuses, each with one line to blame."""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BranchOnValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            return x
        return -x


class ItemInCondition(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max().item() > 1:
            x = x / 2
        return x


class ThroughNumPy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2)


class WrongChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class AlwaysDropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


class WriteThenRead(nn.Module):
    """The read of `y` sees the write: torch.fx does not know."""

    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        z = F.relu(y, inplace=True)
        return z + y


class WriteThroughView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        first, _ = y.chunk(2, dim=1)
        first.mul_(3)
        return y


class TypeTest(nn.Module):
    """A tracer's value is no tensor, so torch.fx takes the other branch."""

    def forward(self, x: Tensor | None) -> Tensor | None:
        return x * 2 if isinstance(x, Tensor) else x


class Counting(nn.Module):
    """Computes something else at each call."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.count += 1
        return x * self.calls


class Unsharable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return x


class Quantized(nn.Module):
    """What a layer of torch's own quantization looks like."""

    __module__ = "torch.ao.nn.quantized.modules.conv"

    def __init__(self) -> None:
        super().__init__()
        self.scale = 0.1

    def forward(self, x: Tensor) -> Tensor:
        return x


class SilentInTraining(nn.Module):
    """Raises without a word where containers are in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise NotImplementedError
        y: Tensor = self.conv(x)
        return y


class BatchStatistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        return y


class DividesByZero(nn.Module):
    """A norm whose variance is zero, without an epsilon."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4, eps=0.0)
        nn.init.zeros_(self.norm.get_buffer("running_var"))

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x)
        return normed


class Diverged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        with torch.no_grad():
            self.conv.weight[0] = float("nan")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y
