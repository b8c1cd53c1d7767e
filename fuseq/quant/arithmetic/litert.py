"""LiteRT's own kernels for 8 bits, those that both of its kernel sets run with the same result.

`multiply` is multiplication in fixed point with two roundings (`fixed_point`), real multipliers are
float32 quotients; `round` takes halves away from zero, `clamp` is to the limits of the output type.

    relu, relu6     clamp(z_y + multiply(x - z_x, s_x / s_y)), cut at round(0 / s_y), round(6 / s_y)
    other clamps    requantize, then MAXIMUM and MINIMUM with constants on the output grid
    average pool    sum of integers / count, halves away from zero, then requantize

Note that an average pool rounds the mean of the integers, zero point and all. Sources:
`tflite/kernels/activations.cc`, `tflite/kernels/internal/reference/integer_ops/pooling.h` of
github.com/google-ai-edge/LiteRT (Apache-2.0).
"""

from __future__ import annotations

import math
from abc import ABC
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fuseq.quant.arithmetic.base import Arithmetic, Pair
from fuseq.quant.arithmetic.fixed_point import multiplier_of, multiply
from fuseq.quant.grid import Grid


class LiteRt(Arithmetic, ABC):
    """What the kernel sets of LiteRT have in common."""

    def dequantize(self, q: Tensor, grid: Grid) -> Tensor:
        """DEQUANTIZE."""
        return grid.dequantize(q)

    def relu(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """RELU."""
        return _relu(x, grid, output_grid, math.inf)

    def clamp(self, x: Tensor, grid: Grid, output_grid: Grid, low: float, high: float) -> Tensor:
        """RELU6, or QUANTIZE and then MAXIMUM and MINIMUM with constants."""
        if (low, high) == (0, 6):
            return _relu(x, grid, output_grid, high)
        bounds = output_grid.quantize(torch.tensor([low, high]))
        moved = self.requantize(x, grid, output_grid)
        return moved.clamp(int(bounds[0]), int(bounds[1]))

    def average_pool(
        self,
        x: Tensor,
        grid: Grid,
        output_grid: Grid,
        *,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair = (0, 0),
        count_include_pad: bool = True,
    ) -> Tensor:
        """AVERAGE_POOL_2D, after a PAD with zero points where padding counts."""
        down, right = padding
        border = (right, right, down, down)
        window = partial(F.avg_pool2d, kernel_size=kernel_size, stride=stride, divisor_override=1)
        fill = int(grid.zero_point) if count_include_pad else 0
        total = window(F.pad(x.double(), border, value=fill))
        inside = torch.ones_like(x[:1, :1], dtype=torch.float64)
        count = window(F.pad(inside, border, value=int(count_include_pad)))
        magnitude = torch.floor((total.abs() + torch.floor(count / 2)) / count)
        mean = torch.copysign(magnitude, total).to(torch.int32)
        return self.requantize(mean, grid, output_grid)


def _relu(x: Tensor, grid: Grid, output_grid: Grid, high: float) -> Tensor:
    zero_point = int(output_grid.zero_point)
    scaled = multiply(x - grid.zero_point, multiplier_of(grid.scale / output_grid.scale))
    top = output_grid.qmax
    if high < math.inf:
        steps = torch.floor(torch.tensor(high) / output_grid.scale + 0.5)
        top = min(top, zero_point + int(steps))
    return (scaled + zero_point).clamp(zero_point, top).to(torch.int32)
