"""`1 / sqrt(x)` of integers, with integers alone, as LiteRT does it.

An integer x > 1 is shifted left by an even number of bits, `2**27 <= x * 4**k < 2**29`, and read as
the number `a = x * 4**k / 2**29` of `[1/4, 1)`. Newton's iteration for the inverse root,

    r <- r * 3/2 - a/2 * r**3,      r = 1 at first, five times,

runs on numbers with 28 bits behind the point; products are rounded halves up (`high_product`). The
result is `r * sqrt(2) / 2`, times a power of two for the shift. That of one is `1 - 2**-31`.
Source: `GetInvSqrtQuantizedMultiplierExp` in `tflite/kernels/internal/common.h` of
github.com/google-ai-edge/LiteRT (Apache-2.0).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fuseq.quant.arithmetic.fixed_point import Multiplier, high_product

ONE = 2**28
"""One, with three bits before the point and 28 behind it."""

HALF_ROOT_OF_TWO = 1518500250
"""`sqrt(2) / 2`, with 31 bits behind the point."""


def inverse_square_root(x: Tensor) -> Multiplier:
    """Inverse roots of integers, int64 in `[1, 2**27)`, in fixed point."""
    _, bits = torch.frexp(x.double())
    pairs = (31 - bits.long()) // 2 - 1
    a = (x << 2 * pairs) >> 1
    half, root = (a + 1) >> 1, torch.full_like(x, ONE)
    three_halves, factor = torch.tensor(3 * ONE // 2), torch.tensor(HALF_ROOT_OF_TWO)
    for _ in range(5):
        cube = _raised(high_product(high_product(root, root), root), 6)
        root = _raised(high_product(three_halves, root) - high_product(half, cube), 3)
    exponent = pairs - 11
    mantissa = high_product(root, factor) << exponent.clamp(min=0)
    exact = x != 1
    return Multiplier(mantissa.where(exact, 2**31 - 1), exponent.clamp(max=0).where(exact, 0))


def _raised(a: Tensor, bits: int) -> Tensor:
    return (a << bits).clamp(-(2**31), 2**31 - 1)
