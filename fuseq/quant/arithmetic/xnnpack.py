"""LiteRT's default arithmetic on x86-64 for 8 bits: XNNPACK, and LiteRT's own kernels for the rest.

Measured on ai-edge-litert 2.3 and read in the sources. float32 where a real appears; `rint` rounds
halves to even, `>>` rounds down, `clamp` is to the limits of the output type.

    quantize                 clamp(rint(x * (1 / s)) + z)
    conv, transposed, linear clamp(rint(acc * m) + z_y),  m = s_x * s_w / s_y
    mul                      the same, m = s_a * s_b / s_y
    add, sub                 clamp((a * m_a +- b * m_b + fixed >> shift) + z_y), integers:
                             m = rint(2**shift * s / s_y), the larger one in [2**20, 2**21)
                             fixed = 2**(shift - 1) - z_a * m_a -+ z_b * m_b
    requantize, leaky relu   clamp(((x - z_x) * m + 128 >> 8) + z_y),  m = rint(256 * s_x / s_y)
    mean of a map            clamp(rint(sum(x) * m + fixed)),  m = (s_x / s_y) * (1 / count)
                             fixed = z_y - count * z_x * m
    tanh, sigmoid, x * x     clamp(rint(f(s_x * (x - z_x)) * (1 / s_y) + z_y)), a table
    bilinear resize          four corners with 11-bit weights, halves up, see `_resized`
    softmax                  clamp(round(e * (1 / (sum(e) * s_y))) + z_y), halves away from zero,
                             e a table of exponentials, summed in order
    relu and the rest        LiteRT's own kernels, see `litert`

Multipliers of requantize and leaky relu have 8 bits only: the result is off by up to half a step
more than rounding needs. Where scales are further apart than its multipliers reach, XNNPACK leaves
the op to LiteRT, whose kernels then agree with the reference ones (a requantize nearly). Not beyond
256, where sums and products overflow or end the process, and convolutions cannot be loaded: the
grids that `solve` makes are not that fine.

Sources: `src/microparams-init.c`, `src/qs8-vadd`, `src/qs8-vmul`, `src/qs8-vcvt`, `src/qs8-vlrelu`,
`src/f32-qs8-vcvt`, `src/s8-ibilinear`, `src/indirection.c`, `src/operators/{reduce-nd,
unary-elementwise-nc}.c`, `src/reference/unary-elementwise.cc` of github.com/google/XNNPACK
(BSD-3-Clause); what it is given, and the softmax, are in `delegates/xnnpack/xnnpack_delegate.cc`
and `kernels/internal/optimized` of github.com/google-ai-edge/LiteRT (Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from fuseq.quant.arithmetic.base import Arithmetic, Pair
from fuseq.quant.arithmetic.fixed_point import divide_by_power, high_product, multiplier_of
from fuseq.quant.arithmetic.litert import LiteRt, every_integer, round_half_away
from fuseq.quant.arithmetic.litert_default_16 import LiteRtDefault16
from fuseq.quant.arithmetic.tflite_ref import TfliteReference
from fuseq.quant.grid import Grid, along

_OWN, _SIXTEEN = TfliteReference(), LiteRtDefault16()


class XnnPack(LiteRt):
    """The default LiteRT interpreter on x86-64."""

    name: ClassVar[str] = "xnnpack"

    def between(self, op: str, *grids: Grid) -> Arithmetic:
        """XNNPACK takes 8 bits only."""
        return _SIXTEEN if any(grid.dtype == "int16" for grid in grids) else self

    def quantize(self, real: Tensor, grid: Grid) -> Tensor:
        """QUANTIZE of floats; what is not a number becomes the largest integer."""
        scaled = torch.round(real.float() * (1 / grid.scale)).nan_to_num(nan=math.inf)
        return grid.saturated(scaled + grid.zero_point)

    def requantize_accumulator(
        self, accumulator: Tensor, multiplicands: tuple[Grid, Grid], output_grid: Grid, axis: int
    ) -> Tensor:
        """Output stage of CONV_2D, DEPTHWISE_CONV_2D, TRANSPOSE_CONV and FULLY_CONNECTED."""
        multiplier = along(self.float32_multiplier(multiplicands, output_grid), accumulator, axis)
        scaled = torch.round(accumulator.float() * multiplier)
        return output_grid.saturated(scaled + output_grid.zero_point)

    def float32_multiplier(self, multiplicands: tuple[Grid, Grid], output_grid: Grid) -> Tensor:
        """`s_x * s_w / s_y`."""
        x, weight = multiplicands
        return x.scale * weight.scale / output_grid.scale

    def requantize(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """QUANTIZE of integers."""
        if "int16" in (grid.dtype, output_grid.dtype):
            return _SIXTEEN.requantize(x, grid, output_grid)
        ratio = grid.scale / output_grid.scale
        if not 2**-8 <= ratio <= 2**7:
            return _requantized_by_litert(x, grid, output_grid)
        return _eighth(x - grid.zero_point, _of_256(ratio), output_grid)

    def add(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """ADD."""
        if not _near(grid_a, grid_b, output_grid):
            return _OWN.add(a, grid_a, b, grid_b, output_grid)
        return _sum(a, grid_a, b, grid_b, output_grid, sign=1)

    def sub(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """SUB."""
        if not _near(grid_a, grid_b, output_grid):
            return _OWN.sub(a, grid_a, b, grid_b, output_grid)
        return _sum(a, grid_a, b, grid_b, output_grid, sign=-1)

    def mul(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """MUL."""
        if self.float32_multiplier((grid_a, grid_b), output_grid) < 2**-16:
            return _OWN.mul(a, grid_a, b, grid_b, output_grid)
        product = (a - grid_a.zero_point) * (b - grid_b.zero_point)
        return self.requantize_accumulator(product, (grid_a, grid_b), output_grid, axis=-1)

    def square(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """MUL of a value with itself."""
        return _table(x, grid, output_grid, torch.square)

    def mean(self, x: Tensor, grid: Grid, output_grid: Grid, dims: tuple[int, ...]) -> Tensor:
        """MEAN."""
        count = math.prod(x.shape[d] for d in dims)
        total = x.sum(dims, keepdim=True)
        share = torch.tensor(1.0) / count
        multiplier = grid.scale / output_grid.scale * share
        fixed = output_grid.zero_point - (count * grid.zero_point).float() * multiplier
        return output_grid.saturated(torch.round(total.float() * multiplier + fixed))

    def leaky_relu(self, x: Tensor, grid: Grid, output_grid: Grid, negative_slope: float) -> Tensor:
        """LEAKY_RELU."""
        above = grid.scale / output_grid.scale
        below = above * torch.tensor(negative_slope, dtype=torch.float32)
        reached = 2**-8 <= above <= 2**7 and 2**-8 <= below.abs() and -(2**7) < below <= 2**7
        if not reached:
            return _OWN.leaky_relu(x, grid, output_grid, negative_slope)
        centered = x - grid.zero_point
        multiplier = torch.where(centered > 0, _of_256(above), _of_256(below))
        return _eighth(centered, multiplier, output_grid)

    def sigmoid(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """LOGISTIC."""
        return _table(x, grid, output_grid, torch.sigmoid)

    def tanh(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """TANH."""
        return _table(x, grid, output_grid, torch.tanh)

    def matmul(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """BATCH_MATMUL: XNNPACK takes it where the zero point of the second operand is zero."""
        if int(grid_b.zero_point) != 0:
            return super().matmul(a, grid_a, b, grid_b, output_grid)
        total = (a - grid_a.zero_point).double() @ b.double()
        return self.requantize_accumulator(total, (grid_a, grid_b), output_grid, axis=-1)

    def softmax(self, x: Tensor, grid: Grid, output_grid: Grid, dim: int) -> Tensor:
        """SOFTMAX along the last dimension of the file."""
        below = x.amax(dim, keepdim=True) - x
        steps = torch.arange(grid.qmax - grid.qmin + 1, dtype=torch.float32, device=x.device)
        exponential = torch.exp((steps * -grid.scale).double()).float()[below.long()]
        total = sum(exponential.unbind(dim), torch.zeros((), device=x.device)).unsqueeze(dim)
        share = exponential * (1 / (total * output_grid.scale))
        return output_grid.saturated(round_half_away(share) + output_grid.zero_point)

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
        """RESIZE_BILINEAR, which knows the size only, and then QUANTIZE."""
        if size is None:
            assert scale_factor is not None
            (high, wide), (down, across) = x.shape[2:], scale_factor
            size = int(high * down), int(wide * across)
        return self.requantize(_resized(x, size, align_corners), grid, output_grid)


def _resized(x: Tensor, size: Pair, align_corners: bool) -> Tensor:
    """Between four corners, `a * 2**11 + (b - a) * w` twice, weights `w` of 11 bits."""
    (top, bottom, down), (left, right, across) = (
        _corners(inputs, outputs, align_corners, x.device)
        for inputs, outputs in zip(x.shape[2:], size, strict=True)
    )
    upper, lower = (
        (row[..., left] << 11) + (row[..., right] - row[..., left]) * across
        for row in (x[:, :, top], x[:, :, bottom])
    )
    total = (upper << 11) + (lower - upper) * down[:, None]
    return (total + 2**21) >> 22


def _corners(
    inputs: int, outputs: int, align_corners: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Both input positions of every output position, and the weight of the second, of 2**11."""
    shrink = int(align_corners and outputs != 1)
    scale = torch.tensor(inputs - shrink, dtype=torch.float32) / (outputs - shrink)
    position = torch.arange(outputs, dtype=torch.float32, device=device) * scale
    if not align_corners:
        position = position + (0.5 * scale - 0.5)
    position = position.clamp(0, inputs - 1)
    first = position.to(torch.int32)
    weight = torch.round((position - first) * 2**11).to(torch.int32)
    return first.long(), (first + 1).clamp(max=inputs - 1).long(), weight


def _sum(a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid, sign: int) -> Tensor:
    ratio_a, ratio_b = (float(grid.scale / output_grid.scale) for grid in (grid_a, grid_b))
    shift = 21 - math.frexp(max(ratio_a, ratio_b))[1]
    factor_a, factor_b = (round(math.ldexp(ratio, shift)) for ratio in (ratio_a, ratio_b))
    factor_b *= sign
    zero_points = int(grid_a.zero_point) * factor_a + int(grid_b.zero_point) * factor_b
    total = a * factor_a + b * factor_b + (2 ** (shift - 1) - zero_points)
    return output_grid.saturated((total >> shift) + output_grid.zero_point)


def _near(grid_a: Grid, grid_b: Grid, output_grid: Grid) -> bool:
    """Whether XNNPACK takes a sum."""
    ratios = (grid.scale / output_grid.scale for grid in (grid_a, grid_b))
    return all(2**-10 <= ratio < 2**8 for ratio in ratios)


def _requantized_by_litert(x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
    """In fixed point: 16 stored integers at a time with halves up, the rest with halves away."""
    stored = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
    centered = (stored - grid.zero_point).reshape(-1).to(torch.int64)
    multiplier = multiplier_of(grid.scale.double() / output_grid.scale.double())
    left, right = multiplier.exponent.clamp(min=0), (-multiplier.exponent).clamp(min=0)
    high = high_product(centered << left, multiplier.mantissa)
    up = (high + ((torch.ones_like(right) << right) >> 1)) >> right
    whole = len(centered) // 16 * 16
    scaled = torch.cat((up[:whole], divide_by_power(high[whole:], right)))
    result = output_grid.saturated(scaled + output_grid.zero_point).reshape(stored.shape)
    return result.permute(0, 3, 1, 2) if x.dim() == 4 else result


def _of_256(ratio: Tensor) -> Tensor:
    return torch.round(256 * ratio).to(torch.int32)


def _eighth(centered: Tensor, multiplier: Tensor, grid: Grid) -> Tensor:
    return grid.saturated((centered * multiplier + 128 >> 8) + grid.zero_point)


def _table(
    x: Tensor, grid: Grid, output_grid: Grid, function: Callable[[Tensor], Tensor]
) -> Tensor:
    # In float64 first, so that the float32 value is the nearest one on every machine.
    real = function(grid.dequantize(every_integer(grid, x)).double()).float()
    table = torch.round(real * (1 / output_grid.scale) + output_grid.zero_point)
    return output_grid.saturated(table)[(x - grid.qmin).long()]
