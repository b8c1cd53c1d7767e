"""Addition in training: the integers of any arithmetic, cut, with the gradient of a sum.

    y = clamp(v),   v = (s_a a + s_b b) / s_y  as the arithmetic rounds it
    dL/da = s_a / s_y dL/dy,   dL/db = s_b / s_y dL/dy   where v was not cut, else 0

on centered integers. Residual networks add at full size, so this op has a backward of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fuseq.qat.gradients import ends, integers, limits, passed, uncut
from fuseq.quant.arithmetic.base import Arithmetic
from fuseq.quant.grid import Grid

PAIRS = 2**16
"""Pairs of integers of 8 bits."""


class _Endless(Grid):
    """A grid that cuts nothing but what int32 would not hold once its zero point is taken off."""

    @property
    def qmin(self) -> int:
        """Far below every sum that is not cut anyway."""
        return -(2**30)

    @property
    def qmax(self) -> int:
        """Far above every sum that is not cut anyway."""
        return 2**30


def added(
    a: Tensor,
    b: Tensor,
    grids: tuple[Grid, Grid, Grid],
    arithmetic: Arithmetic,
    extremes: list[Tensor] | None,
) -> Tensor:
    """Centered integers of `a + b`, as one node of the autograd graph.

    Args:
        a: centered integers, float32.
        b: the same; broadcasts with `a`.
        grids: of `a`, of `b` and of the result; none of them learns.
        arithmetic: whose integers it gives.
        extremes: gets the smallest and largest real that is rounded, `[2]`, if given.
    """
    result: Tensor = _Addition.apply(a, b, grids, arithmetic, extremes)  # type: ignore[no-untyped-call]
    return result


class _Addition(torch.autograd.Function):
    """See the module's formulas."""

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        grids: tuple[Grid, Grid, Grid],
        arithmetic: Arithmetic,
        extremes: list[Tensor] | None,
    ) -> Tensor:
        grid_a, grid_b, grid = grids
        narrow = all(g.qmax - g.qmin < 256 for g in (grid_a, grid_b))
        looked_up = narrow and a.shape == b.shape and a.numel() > PAIRS
        steps = (_looked_up if looked_up else _rounded)(a, b, grids, arithmetic)
        if extremes is not None:
            extremes.append(ends(steps) * grid.scale)
        clamped = steps.clamp(*limits(grid))
        ctx.save_for_backward(uncut(steps, clamped))
        ctx.ratios = grid_a.scale / grid.scale, grid_b.scale / grid.scale
        ctx.shapes = a.shape, b.shape
        return clamped

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        gradient = passed(kept, gradients[0])
        of_a = (gradient * ctx.ratios[0]).sum_to_size(ctx.shapes[0])
        of_b = gradient.mul_(ctx.ratios[1]).sum_to_size(ctx.shapes[1])
        return of_a, of_b, None, None, None


def _rounded(
    a: Tensor, b: Tensor, grids: tuple[Grid, Grid, Grid], arithmetic: Arithmetic
) -> Tensor:
    """`v`: on a grid without ends the arithmetic says where a sum lies that the real one cuts."""
    grid_a, grid_b, grid = grids
    endless = _Endless(grid.scale, grid.zero_point, grid.dtype)
    q = arithmetic.add(integers(a, grid_a), grid_a, integers(b, grid_b), grid_b, endless)
    return q.sub_(grid.zero_point).float()


def _looked_up(
    a: Tensor, b: Tensor, grids: tuple[Grid, Grid, Grid], arithmetic: Arithmetic
) -> Tensor:
    """`_rounded` of integers of 8 bits, by a table of every pair of them."""
    low_a, low_b = limits(grids[0])[0], limits(grids[1])[0]
    every = torch.arange(256, dtype=torch.float32, device=a.device)
    pairs = (every.add(low_a).unsqueeze(1).expand(256, 256), every.add(low_b).expand(256, 256))
    table = _rounded(*pairs, grids, arithmetic).flatten()
    index = torch.add(b, a, alpha=256).sub_(256 * low_a + low_b).to(torch.int32)
    # In the order of memory, whatever the layout of the dimensions.
    found = table.index_select(0, index.as_strided((index.numel(),), (1,)))
    return found.as_strided(index.shape, index.stride())
