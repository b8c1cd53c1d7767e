"""A detector of the YOLO kind: Focus stem, RepConv and ELAN blocks, SPP, a top-down path, heads.

RepConv is the block of YOLOv7 (arXiv 2207.02696), written from the paper; three maps come out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.randomize import randomized


class Conv(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.SiLU())


class Focus(nn.Module):
    """Space to depth by four strided slices, then a convolution."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = Conv(12, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[..., i::2, j::2] for j in range(2) for i in range(2)]
        return self.conv(torch.cat(corners, 1))


class RepConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.dense = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.pointwise = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.identity = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        identity = 0 if self.identity is None else self.identity(x)
        return F.silu(self.dense(x) + self.pointwise(x) + identity)


class ELAN(nn.Module):
    """Two halves of the channels; what each RepConv makes of one of them is kept too."""

    def __init__(self, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__()
        half = outputs // 2
        self.enter = Conv(inputs, 2 * half)
        self.blocks = nn.ModuleList(RepConv(half, half, groups=groups) for _ in range(2))
        self.leave = Conv(4 * half, outputs)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class SPP(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter, self.leave = Conv(channels, channels // 2), Conv(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.enter(x)]
        for _ in range(3):
            maps.append(F.max_pool2d(maps[-1], 5, 1, 2))
        return self.leave(torch.cat(maps, 1))


class Detector(nn.Module):
    def __init__(self, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.stem = Focus(width)
        self.stage2 = nn.Sequential(RepConv(width, 2 * width, 2), ELAN(2 * width, 2 * width, 2))
        self.stage3 = nn.Sequential(Conv(2 * width, 4 * width, 3, 2), ELAN(4 * width, 4 * width))
        self.stage4 = nn.Sequential(RepConv(4 * width, 4 * width, 2, groups=4), SPP(4 * width))
        self.neck3 = ELAN(8 * width, 4 * width)
        self.neck2 = ELAN(6 * width, 2 * width)
        self.heads = nn.ModuleList(
            nn.Conv2d(channels * width, 5 + classes, 1) for channels in (2, 4, 4)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        low = self.stage2(self.stem(x))
        middle = self.stage3(low)
        high = self.stage4(middle)
        middle = self.neck3(torch.cat([F.interpolate(high, scale_factor=2.0), middle], 1))
        low = self.neck2(torch.cat([F.interpolate(middle, scale_factor=2.0), low], 1))
        maps = []
        for head, features in zip(self.heads, (low, middle, high), strict=True):
            batch, _, rows, columns = features.shape
            maps.append(head(features).view(batch, -1, rows * columns).permute(0, 2, 1))
        return maps


def small() -> nn.Module:
    return randomized(Detector())
