"""Softmax of LiteRT's reference kernels: exponentials and a reciprocal in fixed point.

With `d = x - max x` (integers) and Q(n) a 32-bit integer that means itself times `2**(n - 31)`,

    e(d)  = exp(s_x d) in Q(0),  zero where s_x d is below about -31
    sum   = sum e(d) in Q(12)
    y     = -128 + e(d) / sum * 256,  halves away from zero

*Exponential* of `a <= 0` in Q(5): `a = b - r / 4`, `b` in `[-1/4, 0)`. The series about -1/8,

    exp(b) = exp(-1/8) (1 + t + t**2/2 + t**3/6 + t**4/24),   t = b + 1/8,

is multiplied by `exp(-2**k)` for each set bit of `r`, `k` from -2 to 4.

*Reciprocal* of `1 + a`, `a` in `[0, 1)`: three steps of Newton's method for `1 / h`,
`h = (1 + a) / 2`, from the linear estimate `48/17 - 32/17 h`:

    v <- v + v (1 - h v)

The sum is brought to that range by a shift. Every product is `high_product`, every scaling by a
power of two that loses bits `divide_by_power`. Sources: `exp_on_negative_values` and
`one_over_one_plus_x_for_x_in_0_1` in `fixedpoint/fixedpoint.h` of github.com/google/gemmlowp,
`tflite/kernels/internal/reference/softmax.h`, `GetReciprocal` in `tflite/kernels/internal/common.h`
and `PreprocessSoftmaxScaling` in `quantization_util.cc` of github.com/google-ai-edge/LiteRT (both
Apache-2.0).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fuseq.quant.arithmetic.fixed_point import divide_by_power, high_product, multiplier_of
from fuseq.quant.grid import Grid

ONE = 2**31 - 1
"""The largest integer of Q(0), which stands for one."""

INPUT_BITS = 5
SUM_BITS = 12


def softmax(x: Tensor, grid: Grid, dim: int) -> Tensor:
    """SOFTMAX, on the int8 grid of scale 1/256 and zero point -128.

    Args:
        x: integers.
        grid: their grid; its scale is above `2**-26`, or the runtime aborts.
        dim: along which the results add up to one; the exponentials to less than 512, or the
            runtime aborts.
    """
    real = min(float(grid.scale) * 2 ** (31 - INPUT_BITS), 2.0**31 - 1)
    scale = multiplier_of(torch.tensor(real, dtype=torch.float64))
    lowest = -((2**INPUT_BITS - 1) * 2 ** (31 - INPUT_BITS) >> int(scale.exponent))
    difference = (x - x.amax(dim, keepdim=True)).long()
    scaled = high_product(difference.clamp(min=lowest) << scale.exponent, scale.mantissa)
    exponential = _exponential(scaled).where(difference >= lowest, 0)
    total = _divide(exponential, SUM_BITS).sum(dim, keepdim=True)
    length = torch.frexp(total.double()).exponent.long()
    reciprocal = _reciprocal((total << (32 - length)) - 2**31)
    share = high_product(reciprocal, exponential)
    share = divide_by_power(share, length - (32 - SUM_BITS) + 31 - 8)
    return (share - 128).clamp(-128, 127).to(torch.int32)


def _exponential(a: Tensor) -> Tensor:
    """`exp(a)` in Q(0) of `a <= 0` in Q(5)."""
    quarter = 2 ** (31 - INPUT_BITS - 2)
    b = (a & quarter - 1) - quarter
    remainder = b - a
    result = _exponential_near_zero(b << INPUT_BITS)
    for k in range(-2, INPUT_BITS):
        factor = round(math.exp(-(2.0**k)) * 2**31)
        shrunk = high_product(result, torch.tensor(factor))
        result = torch.where(remainder & 2 ** (31 - INPUT_BITS + k) != 0, shrunk, result)
    return torch.where(a == 0, ONE, result)


def _exponential_near_zero(b: Tensor) -> Tensor:
    """`exp(b)` of `b` in `[-1/4, 0)`, both in Q(0)."""
    middle, third = (torch.tensor(round(c * 2**31)) for c in (math.exp(-1 / 8), 1 / 3))
    t = b + 2**28
    square = high_product(t, t)
    cube, fourth = high_product(square, t), high_product(square, square)
    rest = _divide(high_product(_divide(fourth, 2) + cube, third) + square, 1)
    return middle + high_product(middle, t + rest)


def _reciprocal(a: Tensor) -> Tensor:
    """`1 / (1 + a)` of `a` in `[0, 1)`, both in Q(0)."""
    half = a + ONE + 1 >> 1
    v = round(48 / 17 * 2**29) + high_product(half, torch.tensor(round(-32 / 17 * 2**29)))
    for _ in range(3):
        v = v + (high_product(v, 2**29 - high_product(half, v)) << 2)
    return (v << 1).clamp(max=ONE)


def _divide(x: Tensor, exponent: int) -> Tensor:
    return divide_by_power(x, torch.tensor(exponent))
