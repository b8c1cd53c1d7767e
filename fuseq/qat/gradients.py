"""Rounding with straight-through gradients, as few nodes of the autograd graph as it takes.

Backward, rounding counts as the identity and clamping cuts:

    c = clamp(rint(v), low, high)
    dL/dv = dL/dc   where  low <= rint(v) <= high,   else 0

(Bengio et al. 2013, arXiv 1308.3432, section 4; Jacob et al., CVPR 2018, section 3). What is kept
for the backward pass is one byte an element.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fuseq.quant.arithmetic.base import Pair
from fuseq.quant.grid import Grid


def rounded(v: Tensor, limits: Pair, given: Tensor | None = None) -> Tensor:
    """Integers of `v` with straight-through gradients.

    Args:
        v: float, any shape, in steps of the grid.
        limits: smallest and largest centered integer.
        given: the integers to return, of the same shape, where another rule of rounding made them.
    """
    result: Tensor = _Round.apply(v, limits, given)  # type: ignore[no-untyped-call]
    return result


def instead(values: Tensor, exact: Tensor) -> Tensor:
    """Exact float64 values in place of float32 ones, with the gradient of these."""
    result: Tensor = _Instead.apply(values, exact)  # type: ignore[no-untyped-call]
    return result


class _Round(torch.autograd.Function):
    """`clamp(rint(v), *limits)`, or the integers given in its place; see the module's formula."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, limits: Pair, given: Tensor | None) -> Tensor:
        steps = v.round()
        clamped = steps.clamp(*limits)
        ctx.save_for_backward(uncut(steps, clamped))
        return clamped if given is None else given

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return passed(inside, gradients[0]), None, None


def ends(values: Tensor) -> Tensor:
    """Smallest and largest value, `[2]`."""
    if values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)  # in the order of memory; aminmax copies otherwise
    return torch.stack(values.aminmax())


def limits(grid: Grid) -> Pair:
    """Smallest and largest centered integer of a grid."""
    zero_point = int(grid.zero_point)
    return grid.qmin - zero_point, grid.qmax - zero_point


def integers(c: Tensor, grid: Grid) -> Tensor:
    """Integers of a grid, int32, from centered ones."""
    return c.to(torch.int32) + grid.zero_point


def uncut(steps: Tensor, clamped: Tensor) -> Tensor:
    """A byte for each element, 1 where nothing was cut; overwrites `steps`.

    On CPUs a conversion to bool takes half the time of a comparison.
    """
    return steps.sub_(clamped).to(torch.bool).logical_not_().view(torch.uint8)


def passed(kept: Tensor, gradient: Tensor) -> Tensor:
    """The gradient where `uncut` gave 1, zero elsewhere."""
    # A product of two dtypes would take memory for a converted copy besides that of the result.
    return kept.to(gradient.dtype).mul_(gradient)


class _Instead(torch.autograd.Function):
    """Exact float64 values in place of float32 ones, with the gradient of these."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, exact: Tensor) -> Tensor:
        ctx.dtype = values.dtype
        return exact

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].to(ctx.dtype), None
