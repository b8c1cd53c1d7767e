"""LiteRT's reference kernels on int8 and int16: integers throughout.

What `OpResolverType.BUILTIN_REF` runs. With `m` a real in fixed point and `*` the product of two
roundings that `fixed_point` explains, `z` zero points, `s` scales, `away` rounding halves away from
zero, results clamped:

    conv, depthwise, transposed   z_y + acc * m,      m = s_x s_w / s_y
    linear                        z_y + away(acc s_x s_w / s_y), in float64
    add, sub                      z_y + (A +- B) * m,   A = 2**20 (a - z_a) * s_a / S, B alike
                                  m = S / (2**20 s_y),  S = 2 max(s_a, s_b)
    mul                           z_y + (a - z_a)(b - z_b) * m,   m = s_a s_b / s_y in float32
    requantize                    z_y + (x - z_x) * m,   m = s_x / s_y
    leaky relu                    the same, m in float32; below zero m' = s_x slope / s_y in float32
    tanh, sigmoid                 z_y + away(f(s_x (x - z_x)) fl(1 / s_y)), in float32
    global average pool           z_y + sum (x - z_x) * m,    m = floor(2**k m_1 / n) / 2**k,
                                  m_1 the fixed point of s_x / s_y, k = floor(log2 n)
    bilinear                      weights of 10 bits; away(sum / 2**20); then requantize
    quantize                      z + away(fl(x / s))
    softmax                       see `fixed_point_softmax`
    anything else                 see `litert`

With activations of 16 bits terms of a sum are at 2**-15; matmul and depthwise convolutions, whose
bias has 64 bits, multiply by 15 bits (`multiply_wide`), and functions interpolate tables
(`interpolated_functions`). Sums of other convolutions wrap around at 32 bits.

Everything not said to be in float32 is in float64, where products and quotients of scales become
fixed point. Not modelled: reals too large for an integer of 32 bits at the input, which C++ leaves
undefined (here they saturate), and what a kernel refuses at run time (roots of negative numbers).

Sources (github.com/google-ai-edge/LiteRT, Apache-2.0): `tflite/kernels/internal/reference`, above
all `integer_ops`, and how `Prepare` makes parameters in `tflite/kernels/*.cc`; ran on
ai-edge-litert 2.3.0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fuseq.quant.arithmetic import interpolated_functions
from fuseq.quant.arithmetic.base import Arithmetic, Pair
from fuseq.quant.arithmetic.exact_sums import exact_sum
from fuseq.quant.arithmetic.fixed_point import (
    Multiplier,
    low_bits,
    multiplier_of,
    multiply,
    multiply_wide,
)
from fuseq.quant.arithmetic.fixed_point_softmax import softmax
from fuseq.quant.arithmetic.litert import LiteRt, every_integer, gelu_of, round_half_away
from fuseq.quant.grid import Grid, along


class TfliteReference(LiteRt):
    """LiteRT's reference kernels."""

    name: ClassVar[str] = "tflite-ref"
    sum_bits: ClassVar[int] = 20

    def between(self, op: str, *grids: Grid) -> Arithmetic:
        """Kernels of 16 bits differ here and there."""
        return _SIXTEEN if any(grid.dtype == "int16" for grid in grids) else self

    def quantize(self, real: Tensor, grid: Grid) -> Tensor:
        """QUANTIZE of floats."""
        return grid.saturated(round_half_away(real.float() / grid.scale) + grid.zero_point)

    def requantize(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """QUANTIZE of integers; nothing where the grids are equal."""
        if grid == output_grid:
            return x
        real = grid.scale.double() / output_grid.scale.double()
        return output_grid.saturated(_rescale(x, grid, real) + output_grid.zero_point)

    def requantize_accumulator(
        self, accumulator: Tensor, multiplicands: tuple[Grid, Grid], output_grid: Grid, axis: int
    ) -> Tensor:
        """Output stage of CONV_2D, DEPTHWISE_CONV_2D and TRANSPOSE_CONV."""
        scale = accumulator_scale(accumulator, multiplicands, output_grid, axis)
        scaled = multiply(low_bits(accumulator.long()), multiplier_of(scale))
        return output_grid.saturated(scaled + output_grid.zero_point)

    def linear(
        self,
        x: Tensor,
        grid: Grid,
        weight: Tensor,
        weight_grid: Grid,
        bias: Tensor | None,
        output_grid: Grid,
    ) -> Tensor:
        """FULLY_CONNECTED."""
        total = exact_sum(F.linear, x - grid.zero_point, weight, grid)
        if bias is not None:
            total = total + bias.double()
        scaled = total * accumulator_scale(total, (grid, weight_grid), output_grid, -1)
        return output_grid.saturated(round_half_away(scaled) + output_grid.zero_point)

    def add(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """ADD."""
        return _sum(a, grid_a, b, grid_b, output_grid, torch.add, self.sum_bits)

    def sub(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """SUB."""
        return _sum(a, grid_a, b, grid_b, output_grid, torch.sub, self.sum_bits)

    def mul(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """MUL."""
        product = (a - grid_a.zero_point).long() * (b - grid_b.zero_point)
        multiplier = multiplier_of(grid_a.scale * grid_b.scale / output_grid.scale)
        return output_grid.saturated(multiply(product, multiplier) + output_grid.zero_point)

    def mean(self, x: Tensor, grid: Grid, output_grid: Grid, dims: tuple[int, ...]) -> Tensor:
        """MEAN."""
        total = (x - grid.zero_point).long().sum(dims, keepdim=True)
        count = math.prod(x.shape[d] for d in dims)
        whole = multiplier_of(grid.scale.double() / output_grid.scale.double())
        bits = min(count.bit_length() - 1, 32, 31 + int(whole.exponent))
        multiplier = Multiplier((whole.mantissa << bits) // count, whole.exponent - bits)
        return output_grid.saturated(multiply(total, multiplier) + output_grid.zero_point)

    def interpolate_bilinear(
        self,
        x: Tensor,
        grid: Grid,
        output_grid: Grid,
        *,
        size: Pair | None,
        scale_factor: tuple[float, float] | None,
        align_corners: bool,
    ) -> Tensor:
        """RESIZE_BILINEAR on the input's grid, with half pixel centers or aligned corners."""
        corners = []
        for axis, inputs in enumerate(x.shape[2:]):
            if scale_factor is None:
                assert size is not None
                outputs = size[axis]
            else:
                outputs = int(inputs * scale_factor[axis])
            corners.append(_corners(outputs, inputs, align_corners, x.device))
        rows, columns = corners
        total = torch.zeros((), dtype=torch.int64, device=x.device)
        for row, row_weight in rows:
            for column, column_weight in columns:
                corner = x.index_select(2, row).index_select(3, column)
                total = total + corner * (row_weight.unsqueeze(1) * column_weight)
        mean = total.sign() * (total.abs() + 2**19 >> 20)
        return self.requantize(mean.to(torch.int32), grid, output_grid)

    def leaky_relu(self, x: Tensor, grid: Grid, output_grid: Grid, negative_slope: float) -> Tensor:
        """LEAKY_RELU."""
        slope = torch.tensor(negative_slope, dtype=torch.float32)
        above = _rescale(x, grid, grid.scale / output_grid.scale)
        below = _rescale(x, grid, grid.scale * slope / output_grid.scale)
        scaled = torch.where(x >= grid.zero_point, above, below)
        return output_grid.saturated(scaled + output_grid.zero_point)

    def sigmoid(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """LOGISTIC, a table."""
        return _table(x, grid, output_grid, lambda real: 1 / (1 + (-real.double()).exp().float()))

    def tanh(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """TANH, a table."""
        return _table(x, grid, output_grid, lambda real: real.double().tanh().float())

    def softmax(self, x: Tensor, grid: Grid, output_grid: Grid, dim: int) -> Tensor:
        """SOFTMAX, whose grid is always the same."""
        return softmax(x, grid, dim)


class TfliteReference16(TfliteReference):
    """LiteRT's reference kernels where activations have 16 bits and weights 8."""

    inexact: ClassVar[frozenset[str]] = frozenset({"gelu"})
    sum_bits: ClassVar[int] = 15

    def of_sums(
        self, *, groups: int = 1, depthwise: bool = False, transposed: bool = False
    ) -> Arithmetic:
        """DEPTHWISE_CONV_2D has a bias of 64 bits, all others one of 32."""
        return _WIDE if depthwise else self

    def matmul(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """BATCH_MATMUL, summed in 64 bits."""
        multiplier = multiplier_of((grid_a.scale * grid_b.scale).double() / output_grid.scale)
        return output_grid.saturated(multiply_wide(a.double() @ b.double(), multiplier))

    def sigmoid(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """LOGISTIC, whose grid is always the same."""
        return interpolated_functions.sigmoid(x, grid)

    def tanh(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """TANH, whose grid is always the same."""
        return interpolated_functions.tanh(x, grid)

    def gelu(self, x: Tensor, grid: Grid, output_grid: Grid, approximate: str) -> Tensor:
        """GELU."""
        return interpolated_functions.interpolated(x, grid, output_grid, gelu_of(approximate))

    def rsqrt(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """RSQRT; the runtime refuses to compute that of a negative value."""

        def function(real: Tensor) -> Tensor:
            root = real.double().sqrt().float()
            return torch.where(real > 0, 1 / root, 32767 * output_grid.scale)

        return interpolated_functions.interpolated(x, grid, output_grid, function)

    def softmax(self, x: Tensor, grid: Grid, output_grid: Grid, dim: int) -> Tensor:
        """SOFTMAX, whose grid is always the same."""
        return interpolated_functions.softmax(x, grid, dim)


class _Wide(TfliteReference):
    """Sums of 64 bits."""

    def requantize_accumulator(
        self, accumulator: Tensor, multiplicands: tuple[Grid, Grid], output_grid: Grid, axis: int
    ) -> Tensor:
        scale = accumulator_scale(accumulator, multiplicands, output_grid, axis)
        return output_grid.saturated(multiply_wide(accumulator, multiplier_of(scale)))


_SIXTEEN, _WIDE = TfliteReference16(), _Wide()


def _rescale(x: Tensor, grid: Grid, real: Tensor) -> Tensor:
    """`(x - zero_point) * real`, int64."""
    return multiply(x - grid.zero_point, multiplier_of(real))


def accumulator_scale(
    accumulator: Tensor, multiplicands: tuple[Grid, Grid], output_grid: Grid, axis: int
) -> Tensor:
    """`s_x s_w / s_y` in float64, shaped to multiply an accumulator."""
    x, weight = (grid.scale.double() for grid in multiplicands)
    return along(x * weight / output_grid.scale.double(), accumulator, axis)


def _sum(
    a: Tensor,
    grid_a: Grid,
    b: Tensor,
    grid_b: Grid,
    output_grid: Grid,
    operation: Callable[[Tensor, Tensor], Tensor],
    bits: int,
) -> Tensor:
    scale = 2 * torch.maximum(grid_a.scale, grid_b.scale).double()
    terms = (
        multiply((q - grid.zero_point) << bits, multiplier_of(grid.scale / scale))
        for q, grid in ((a, grid_a), (b, grid_b))
    )
    multiplier = multiplier_of(scale / (2**bits * output_grid.scale.double()))
    scaled = multiply(operation(*terms), multiplier)
    return output_grid.saturated(scaled + output_grid.zero_point)


def _table(
    x: Tensor, grid: Grid, output_grid: Grid, function: Callable[[Tensor], Tensor]
) -> Tensor:
    """A function of one real, evaluated once per integer of the input grid."""
    scaled = function(grid.dequantize(every_integer(grid, x))) * (1 / output_grid.scale)
    table = output_grid.saturated(round_half_away(scaled) + output_grid.zero_point)
    return table[(x - grid.qmin).long()]


def _corners(
    outputs: int, inputs: int, align_corners: bool, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Both input positions an output position is interpolated from, with their weights times 1024.

    Steps from one output to the next are rounded to 1/1024 of a pixel.
    """
    steps, pixels = (
        (outputs - 1, inputs - 1) if align_corners and outputs > 1 else (outputs, inputs)
    )
    step = (1024 * pixels + steps // 2) // steps
    position = torch.arange(outputs, device=device) * step
    if not align_corners:
        position = position + step // 2 - 512
    first = (position >> 10).clamp(0, inputs - 1)
    second = (position + 1023 >> 10).clamp(0, inputs - 1)
    fraction = position - (first << 10)
    return [(first, 1024 - fraction), (second, fraction)]
