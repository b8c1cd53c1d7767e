"""Kernels made of kernels: RefConv (arXiv 2310.10563) and DO-Conv (arXiv 2006.12030)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.randomize import randomized


class RefConv(nn.Module):
    """A depthwise kernel plus a convolution over all the kernels, read as one image."""

    base: Tensor

    def __init__(self, channels: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.register_buffer("base", torch.randn(channels, 1, kernel, kernel))
        self.refocus = nn.Conv2d(channels, channels, 3, padding=1, groups=channels // 8, bias=False)
        self.stride, self.padding = stride, kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        change = self.refocus(self.base.view(1, *self.base.shape[:1], *self.base.shape[2:]))
        weight = change.view_as(self.base) + self.base
        return F.conv2d(x, weight, None, self.stride, self.padding, groups=x.shape[1])


class DOConv(nn.Module):
    """A kernel times a depthwise over-parameterization of its taps."""

    identity: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, depth: int = 12) -> None:
        super().__init__()
        taps = kernel * kernel
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(outputs, inputs, depth))
        self.depthwise = nn.Parameter(torch.empty(inputs, taps, depth))
        self.register_buffer("identity", torch.eye(taps).repeat(1, 2)[:, :depth])

    def forward(self, x: Tensor) -> Tensor:
        depthwise = self.depthwise + self.identity
        kernel = torch.einsum("itd,oid->oit", depthwise, self.weight)
        weight = kernel.reshape(*kernel.shape[:2], self.kernel, self.kernel)
        return F.conv2d(x, weight, padding=self.kernel // 2)


def unit(conv: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())


def small() -> nn.Module:
    """MobileNet's depthwise and pointwise units, and dense ones with DO-Conv."""
    torch.manual_seed(0)
    return randomized(
        nn.Sequential(
            unit(nn.Conv2d(3, 16, 3, 2, 1, bias=False), 16),
            unit(RefConv(16), 16),
            unit(nn.Conv2d(16, 32, 1, bias=False), 32),
            unit(RefConv(32, 5, 2), 32),
            unit(DOConv(32, 32), 32),
            unit(DOConv(32, 16, 5, 30), 16),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 10),
        )
    )
