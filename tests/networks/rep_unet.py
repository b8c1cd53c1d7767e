"""A U-Net of RepVGG blocks that takes any size: it pads up to a multiple, and crops at the end.

Whether it pads depends on the size of the image, so symbolic tracing cannot record it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.randomize import randomized
from tests.networks.repvgg import RepVGGBlock


class RepUNet(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.enter = RepVGGBlock(3, width)
        self.down = nn.ModuleList(
            [RepVGGBlock(width, 2 * width, 2), RepVGGBlock(2 * width, 4 * width, 2)]
        )
        self.up = nn.ModuleList([RepVGGBlock(6 * width, 2 * width), RepVGGBlock(3 * width, width)])
        self.leave = nn.Conv2d(width, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[2:]
        if rows % 4 or columns % 4:
            x = F.pad(x, (0, -columns % 4, 0, -rows % 4))
        maps = [self.enter(x)]
        for down in self.down:
            maps.append(down(maps[-1]))
        out = maps.pop()
        for up in self.up:
            out = F.interpolate(out, scale_factor=2.0, mode="nearest")
            out = up(torch.cat([out, maps.pop()], 1))
        return self.leave(out)[:, :, :rows, :columns]


def small() -> nn.Module:
    return randomized(RepUNet())
