"""LiteRT's own kernels for 8 bits, those that both of its kernel sets run with the same result.

`multiply` is multiplication in fixed point with two roundings (`fixed_point`), real multipliers are
float32 quotients; `round` takes halves away from zero, `clamp` is to the limits of the output type.

    relu, relu6     clamp(z_y + multiply(x - z_x, s_x / s_y)), cut at round(0 / s_y), round(6 / s_y)
    other clamps    requantize, then MAXIMUM and MINIMUM with constants on the output grid
    average pool    sum of integers / count, halves away from zero, then requantize
    prelu           clamp(z_y + multiply(c * (alpha - z_alpha), s_x * s_alpha / s_y)) where c < 0,
                    clamp(z_y + multiply(c, s_x / s_y)) elsewhere,  c = x - z_x
    matmul          clamp(z_y + multiply(acc, s_a * s_b / s_y))
    gelu            clamp(z_y + round(f(s_x * (x - z_x)) * (1 / s_y))), a table
    hard swish      16-bit fixed point, see `_hard_swish`
    rsqrt           clamp(z_y + multiply(2**20 / sqrt(x - z_x), 2**-20 / (sqrt(s_x) * s_y)))

Note that an average pool rounds the mean of the integers, zero point and all. Functions of
the system's libm (`erfc`, `tanh`) are taken to be correctly rounded. Sources: `activations.cc`,
`elementwise.cc`, `batch_matmul.cc` in `tflite/kernels`, `hard_swish.h`, `prelu.h`, `gelu.h` and
`integer_ops/pooling.h` in `tflite/kernels/internal/reference` of github.com/google-ai-edge/LiteRT
(Apache-2.0).
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fuseq.quant.arithmetic.base import Arithmetic, Pair
from fuseq.quant.arithmetic.fixed_point import (
    Multiplier,
    divide_by_power,
    multiplier_of,
    multiply,
)
from fuseq.quant.arithmetic.inverse_square_root import inverse_square_root
from fuseq.quant.grid import Grid, slope_grid


class LiteRt(Arithmetic, ABC):
    """What the kernel sets of LiteRT have in common."""

    @property
    def means_anywhere(self) -> bool:
        """MEAN takes all."""
        return True

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

    def prelu(self, x: Tensor, grid: Grid, weight: Tensor, output_grid: Grid) -> Tensor:
        """PRELU with slopes on `slope_grid`."""
        slopes = slope_grid(weight, "int8")
        centered = x - grid.zero_point
        slope = (slopes.quantize(weight) - slopes.zero_point).reshape(-1, *[1] * (x.dim() - 2))
        positive = multiplier_of(grid.scale / output_grid.scale)
        negative = multiplier_of(grid.scale * slopes.scale / output_grid.scale)
        scaled = torch.where(
            centered < 0, multiply(centered * slope, negative), multiply(centered, positive)
        )
        return output_grid.saturated(scaled + output_grid.zero_point)

    def matmul(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """BATCH_MATMUL."""
        total = (a - grid_a.zero_point).double() @ (b - grid_b.zero_point).double()
        scale = (grid_a.scale * grid_b.scale).double() / output_grid.scale.double()
        scaled = multiply(total.to(torch.int64), multiplier_of(scale))
        return output_grid.saturated(scaled + output_grid.zero_point)

    def gelu(self, x: Tensor, grid: Grid, output_grid: Grid, approximate: str) -> Tensor:
        """GELU."""
        real = gelu_of(approximate)(grid.dequantize(every_integer(grid, x)))
        table = round_half_away(real * (1 / output_grid.scale))
        return output_grid.saturated(table + output_grid.zero_point)[(x - grid.qmin).long()]

    def hard_swish(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """HARD_SWISH."""
        table = _hard_swish(every_integer(grid, x) - grid.zero_point, grid, output_grid)
        return output_grid.saturated(table + output_grid.zero_point)[(x - grid.qmin).long()]

    def rsqrt(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """RSQRT; the runtime refuses to compute that of a negative value."""
        # float32(sqrt(float64)) is the correctly rounded root.
        root = grid.scale.double().sqrt().float() * output_grid.scale
        scale = multiplier_of(1 / root.double())
        centered = (every_integer(grid, x) - grid.zero_point).to(torch.int64)
        inverse = inverse_square_root(centered.clamp(min=1))
        high = multiply(
            torch.ones_like(centered), Multiplier(inverse.mantissa, inverse.exponent + 20)
        )
        scaled = multiply(high, Multiplier(scale.mantissa, scale.exponent - 20))
        table = (scaled + output_grid.zero_point).where(centered > 0, output_grid.qmax)
        return output_grid.saturated(table)[(x - grid.qmin).long()]

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


def round_half_away(real: Tensor) -> Tensor:
    """Nearest integers, halves away from zero, as float64: adding a half rounds in float32."""
    return torch.copysign(torch.floor(real.double().abs() + 0.5), real)


def every_integer(grid: Grid, like: Tensor) -> Tensor:
    """All integers of a grid, on the device of a tensor."""
    return torch.arange(grid.qmin, grid.qmax + 1, dtype=torch.int32, device=like.device)


def gelu_of(approximate: str) -> Callable[[Tensor], Tensor]:
    """Float32 GELU, `approximate` as torch's."""
    return _gelu if approximate == "none" else _gelu_by_tanh


def _gelu(x: Tensor) -> Tensor:
    argument = x * torch.tensor(-math.sqrt(0.5), dtype=torch.float32)
    complement: Tensor = torch.special.erfc(argument.double())
    return 0.5 * x * complement.float()


def _gelu_by_tanh(x: Tensor) -> Tensor:
    root, cubic = (torch.tensor(v, dtype=torch.float32) for v in (math.sqrt(2 / math.pi), 0.044715))
    argument = root * (x + cubic * x * x * x)
    return 0.5 * x * (1 + torch.tanh(argument.double()).float())


def _hard_swish(centered: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
    """`x * gate`, `gate = clamp(x / 6 + 1 / 2, 0, 1)`, both in 16-bit fixed point."""
    raised = centered.to(torch.int64) << 7
    scale, shift = _of_16_bits(grid.scale / 128 / output_grid.scale)
    value = _product_of_16(raised, scale)

    # x / 3 in [-1, 1), where 2**15 is one.
    third, exponent = _of_16_bits(grid.scale / 128 / torch.tensor(3 / 32768, dtype=torch.float32))
    if exponent > 0:
        gate = _product_of_16(_in_16_bits(raised << (exponent - 1)), third)
        gate = _in_16_bits(gate << 1)
    else:
        gate = divide_by_power(_product_of_16(raised, third), torch.tensor(-exponent))
    gate = (gate + 2**15) >> 1
    product = torch.div(gate * value, 2**15, rounding_mode="trunc")
    return divide_by_power(product, torch.tensor(-shift))


def _of_16_bits(real: Tensor) -> tuple[int, int]:
    multiplier = multiplier_of(real)
    return min((int(multiplier.mantissa) + 2**15) >> 16, 2**15 - 1), int(multiplier.exponent)


def _product_of_16(a: Tensor, b: int) -> Tensor:
    return (a * b + 2**14) >> 15


def _in_16_bits(a: Tensor) -> Tensor:
    return a.clamp(-(2**15), 2**15 - 1)


def _relu(x: Tensor, grid: Grid, output_grid: Grid, high: float) -> Tensor:
    zero_point = int(output_grid.zero_point)
    scaled = multiply(x - grid.zero_point, multiplier_of(grid.scale / output_grid.scale))
    top = output_grid.qmax
    if high < math.inf:
        steps = round_half_away(torch.tensor(high) / output_grid.scale)
        top = min(top, zero_point + int(steps))
    return (scaled + zero_point).clamp(zero_point, top).to(torch.int32)
