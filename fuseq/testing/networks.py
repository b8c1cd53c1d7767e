"""Small networks, one for each structure that rewrites and translations go wrong on.

Batch norms have statistics, scales and shifts off their defaults; sizes are odd, channels differ.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Inputs = tuple[Tensor, ...]


def small_networks() -> dict[str, tuple[nn.Module, Inputs]]:
    """Networks with their inputs, by name: the same values at each call, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = {kind.__name__: (kind().eval(), _inputs(channels)) for kind, channels in _KINDS}
        for model, _ in made.values():
            _move_statistics(model)
    return made


def _inputs(channels: tuple[int, ...]) -> Inputs:
    return tuple(torch.rand(1, count, 11, 14) for count in channels)


def _move_statistics(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.1, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)


class Plain(nn.Module):
    """Convolution, batch norm, ReLU; convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """One image in, one out."""
        y: Tensor = self.second(torch.relu(self.norm(self.first(x))))
        return y


class Branches(nn.Module):
    """A padded 3x3, a 1x1 and the input itself, each with a batch norm, and their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.wide_norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.narrow, self.narrow_norm = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        """One image in, one out."""
        wide, narrow = self.wide_norm(self.wide(x)), self.narrow_norm(self.narrow(x))
        return torch.relu(wide + narrow + self.norm(x))


class Strided(nn.Module):
    """Strides, a dilation, groups and a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.groups = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        """One image in, a smaller one out."""
        y: Tensor = self.depthwise(torch.relu(self.groups(torch.relu(self.down(x)))))
        return y


class Residual(nn.Module):
    """A value that is read twice, beyond a non-linearity."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """One image in, one out."""
        y = torch.relu(self.first(x))
        return y + torch.clamp(self.second(y), 0.0, 6.0)


class Gated(nn.Module):
    """The product of two convolutions, one behind a sigmoid, and a factor of one."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """One image in, one out."""
        y: Tensor = self.value(x) * torch.sigmoid(self.gate(x))
        return y * 1.0


class Joined(nn.Module):
    """A concatenation of values of different ranges, a pooled one among them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 2, 1)
        self.last = nn.Conv2d(9, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """One image in, one out."""
        pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        y: Tensor = self.last(torch.cat([self.first(x), 8 * self.second(x), pooled], dim=1))
        return y


class Upscaler(nn.Module):
    """A pixel shuffle at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """One image in, one of twice the size out."""
        y: Tensor = self.head(torch.relu(self.body(x)))
        return F.pixel_shuffle(y, 2)


class TwoEnds(nn.Module):
    """Two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.map = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(1, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, image: Tensor, map: Tensor) -> tuple[Tensor, Tensor]:
        """An image and a map in, two images out."""
        y = torch.relu(self.image(image) + self.map(map))
        return y, self.head(y)


_KINDS: tuple[tuple[Callable[[], nn.Module], tuple[int, ...]], ...] = (
    (Plain, (3,)),
    (Branches, (4,)),
    (Strided, (3,)),
    (Residual, (4,)),
    (Gated, (3,)),
    (Joined, (3,)),
    (Upscaler, (3,)),
    (TwoEnds, (3, 1)),
)
