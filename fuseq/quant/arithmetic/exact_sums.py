"""Weighted sums of integers of which no partial sum is rounded, in the fastest format that can."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from fuseq.quant.grid import Grid

Product: TypeAlias = Callable[[Tensor, Tensor], Tensor]

SPLIT = 64
"""Products of an output from which on torch convolves twice in float32 in less time than once in
float64; kernels of one tap, which are matrix products, never do (`python -m benchmarks.precision`).
"""


def exact_sum(product: Product, x: Tensor, weight: Tensor, grid: Grid) -> Tensor:
    """Weighted sums of integers, float64 holding integers, none of them rounded.

    float32 holds every integer up to 2**24: a sum is exact, in any order, while
    `sum|w| * max|x| <= 2**24` for each output channel. Where 16 bits exceed that,

        sum w x = 256 sum w floor(x / 256) + sum w (x mod 256)

    has two sums that mostly do not: that is done where it is faster than float64 (`SPLIT`). float64
    otherwise, and on accelerators, whose convolutions may round their inputs (TF32) or transform
    them (Winograd).

    Args:
        product: of an input and a weight, linear in both.
        x: int32, zero point subtracted.
        weight: int8 `[O, ...]`.
        grid: grid of the input.
    """
    with torch.autocast(x.device.type, enabled=False):
        if holds_sums(weight, _largest(grid)):
            return product(x.float(), weight.float()).double()
        splits = weight[0].numel() >= SPLIT and weight[0, 0].numel() > 1
        if splits and holds_sums(weight, 256):
            high = x >> 8
            low = x - (high << 8)
            tops, rests = (product(part.float(), weight.float()) for part in (high, low))
            return torch.add(rests.double(), tops.double(), alpha=256)
        return product(x.double(), weight.double())


def holds_sums(weight: Tensor, largest: int) -> bool:
    """Whether float32 sums of weighted integers up to `largest` are exact here."""
    bound = int(weight.flatten(1).long().abs().sum(1).max()) * largest
    return weight.device.type == "cpu" and bound <= 2**24


def _largest(grid: Grid) -> int:
    return max(grid.qmax - int(grid.zero_point), int(grid.zero_point) - grid.qmin)
