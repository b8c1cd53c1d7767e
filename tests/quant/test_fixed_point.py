"""Fixed-point multiplication against exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from fuseq.quant.arithmetic.fixed_point import divide_by_power, multiplier_of, multiply


def _away(value: Fraction) -> int:
    return (
        math.floor(value + Fraction(1, 2)) if value >= 0 else -math.floor(-value + Fraction(1, 2))
    )


REALS = st.floats(2.0**-31, 2.0**7, exclude_max=True)


@given(REALS, st.booleans())
def test_a_multiplier_is_the_real_to_31_bits(real: float, negative: bool) -> None:
    real = -real if negative else real
    found = multiplier_of(torch.tensor(real, dtype=torch.float64))
    mantissa, exponent = int(found.mantissa), int(found.exponent)
    assert 2**30 <= abs(mantissa) < 2**31
    step = Fraction(2) ** (exponent - 31)
    assert abs(mantissa * step - Fraction(real)) <= step / 2


def test_a_multiplier_just_below_a_power_of_two_is_that_power() -> None:
    found = multiplier_of(torch.tensor(1 - 2.0**-40, dtype=torch.float64))
    assert (int(found.mantissa), int(found.exponent)) == (2**30, 1)


def test_what_is_too_small_for_a_shift_is_zero() -> None:
    found = multiplier_of(torch.tensor([2.0**-33, 0.0], dtype=torch.float64))
    assert found.mantissa.tolist() == found.exponent.tolist() == [0, 0]


@given(st.integers(-(2**23), 2**23 - 1), REALS)
def test_a_product_is_rounded_half_up_and_then_half_away(x: int, real: float) -> None:
    found = multiplier_of(torch.tensor(real, dtype=torch.float64))
    mantissa, exponent = int(found.mantissa), int(found.exponent)
    product = Fraction(x * 2 ** max(exponent, 0) * mantissa, 2**31)
    high = math.floor(product + Fraction(1, 2))
    expected = _away(Fraction(high, 2 ** max(-exponent, 0)))
    assert int(multiply(torch.tensor(x), found)) == expected


def test_halves_go_away_from_zero() -> None:
    x = torch.tensor([-6, -5, -3, -2, -1, 0, 1, 2, 3, 5, 6])
    assert divide_by_power(x, torch.tensor(2)).tolist() == [-2, -1, -1, -1, 0, 0, 0, 1, 1, 1, 2]
    assert divide_by_power(x, torch.tensor(0)).tolist() == x.tolist()
