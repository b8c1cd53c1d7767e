"""int8 grids, and all of their integers, for the tests of LiteRT's arithmetics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuseq.quant.grid import Grid
from tests.quant.qdq import any_grid, every_integer
from tests.quant.single_ops import Operand, run


def grid_of(scale: float, zero_point: int) -> Grid:
    return Grid(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), "int8")


def near(random: np.random.Generator, grid: Grid, low: float, high: float) -> Grid:
    """A grid whose ratio to another one is in a range, ends included now and then."""
    ratio = random.choice([low, high, np.exp(random.uniform(np.log(low), np.log(high)))])
    return grid_of(float(grid.scale) / float(ratio), int(any_grid(random, "int8").zero_point))


def same_on_all(
    code: str,
    function: Callable[[Tensor, Grid, Grid], Tensor],
    grid: Grid,
    output: Grid,
    options: str = "",
    kernels: str = "xnnpack",
    **fields: Any,
) -> bool:
    """Whether we and the runtime agree on all integers of a grid."""
    q = every_integer(grid)
    theirs = run(
        code, [Operand(q, grid)], q.shape, output, kernels=kernels, options=options, **fields
    )
    return torch.equal(function(q, grid, output), theirs)
