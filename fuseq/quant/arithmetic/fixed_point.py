"""Multiplication by a real number with integers alone, as gemmlowp and LiteRT do it.

A real multiplier is written as

    m = mantissa / 2**31 * 2**exponent,      2**30 <= abs(mantissa) < 2**31

and an integer is multiplied by it in two steps, each of which rounds:

    high = floor((x * 2**max(exponent, 0) * mantissa + 2**30) / 2**31)        halves up
    y    = high / 2**max(-exponent, 0), rounded                               halves away from zero

The first step is gemmlowp's `SaturatingRoundingDoublingHighMul`, the second `RoundingDivideByPOT`
(github.com/google/gemmlowp, `fixedpoint/fixedpoint.h`; Jacob et al., CVPR 2018, section 2.2 and
appendix B). Their saturation is not needed: it takes an operand of `-2**31`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Multiplier:
    """Real multipliers in fixed point.

    Attributes:
        mantissa: int64, 0 or of magnitude in `[2**30, 2**31)`.
        exponent: int64 of the same shape.
    """

    mantissa: Tensor
    exponent: Tensor


def multiplier_of(real: Tensor) -> Multiplier:
    """The nearest fixed-point multiplier (LiteRT's `QuantizeMultiplier`).

    Args:
        real: those of magnitude below `2**-32` become zero.
    """
    fraction, exponent = torch.frexp(real.double())
    magnitude = torch.floor(fraction.abs() * 2**31 + 0.5).to(torch.int64)
    exponent = exponent.to(torch.int64)
    overflows = magnitude == 2**31
    magnitude = torch.where(overflows, magnitude // 2, magnitude)
    exponent = torch.where(overflows, exponent + 1, exponent)
    vanishes = (exponent < -31) | (magnitude == 0)
    mantissa = torch.where(fraction < 0, -magnitude, magnitude)
    return Multiplier(mantissa.where(~vanishes, 0), exponent.where(~vanishes, 0))


def multiply(x: Tensor, multiplier: Multiplier) -> Tensor:
    """`x * m` in two roundings (LiteRT's `MultiplyByQuantizedMultiplier`).

    Args:
        x: integers, `abs(x) * 2**max(exponent, 0) < 2**31`.
        multiplier: broadcast against `x`.

    Returns:
        int64 integers.
    """
    shifted = x.to(torch.int64)
    if (multiplier.exponent > 0).any():
        shifted = low_bits(shifted << (multiplier.exponent.clamp(min=0) & 31))
    return divide_by_power(high_product(shifted, multiplier.mantissa), -multiplier.exponent)


def multiply_wide(x: Tensor, multiplier: Multiplier) -> Tensor:
    """`x * m` of a wide sum: the mantissa is rounded to 15 bits, the product once, halves up.

    LiteRT's `MultiplyByQuantizedMultiplier` of 64-bit integers.

    Args:
        x: integers, `abs(x) < 2**47`.
        multiplier: not negative, of exponents up to 7, broadcast against `x`.
    """
    mantissa = (multiplier.mantissa + 2**15 >> 16).clamp(max=2**15 - 1)
    shift = 15 - multiplier.exponent
    return x.to(torch.int64) * mantissa + (torch.ones_like(shift) << shift - 1) >> shift


def multiply_halves_up(x: Tensor, multiplier: Multiplier) -> Tensor:
    """`x * m` in two roundings, halves up in both; arguments as those of `multiply`."""
    high = high_product(x.to(torch.int64) << multiplier.exponent.clamp(min=0), multiplier.mantissa)
    exponent = (-multiplier.exponent).clamp(min=0)
    return high + ((torch.ones_like(exponent) << exponent) >> 1) >> exponent


def high_product(a: Tensor, b: Tensor) -> Tensor:
    """`a * b / 2**31`, halves up, of int64 tensors that hold 32-bit integers."""
    return (a * b + 2**30) >> 31


def divide_by_power(x: Tensor, exponent: Tensor) -> Tensor:
    """`x / 2**max(exponent, 0)`, halves away from zero."""
    exponent = exponent.clamp(min=0)
    half = (torch.ones_like(exponent) << exponent) >> 1
    # Below zero the half that rounding down would lift is left out: -1.5 stays -2.
    return (x + half - ((x < 0) & (exponent > 0)).to(x.dtype)) >> exponent


def low_bits(x: Tensor) -> Tensor:
    """The 32 low bits, as signed integers."""
    return (x + 2**31 & 2**32 - 1) - 2**31
