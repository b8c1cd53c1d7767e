"""Random int8 grids and parameters for probes of LiteRT's kernels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fuseq.quant.grid import Grid
from tests.quant.qdq import any_grid


def grid_near(random: np.random.Generator, scale: float, octaves: float = 3) -> Grid:
    """An int8 grid whose scale is within some octaves of a scale."""
    exponent = random.uniform(-octaves, octaves)
    grid = any_grid(random, "int8")
    factor = 2.0 ** (round(exponent) if random.random() < 0.5 else exponent)
    return Grid(torch.tensor(scale * factor, dtype=torch.float32), grid.zero_point, "int8")


def random_weight(
    random: np.random.Generator, shape: tuple[int, ...], axis: int
) -> tuple[Tensor, Grid]:
    """int8 weights, half of them with a scale per channel."""
    weight = torch.from_numpy(random.integers(-127, 128, shape).astype(np.int8))
    channels = shape[axis]
    scale = torch.from_numpy(random.uniform(0.001, 0.02, channels).astype(np.float32))
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    if channels > 1 and random.random() < 0.5:
        return weight, Grid(scale, zero_point, "int8", axis)
    return weight, Grid(scale[0], zero_point[0], "int8")


def random_bias(
    random: np.random.Generator, grid: Grid, weight_grid: Grid, channels: int
) -> tuple[Tensor, Grid]:
    """int32 at `s_x * s_w`."""
    bias = torch.from_numpy(random.integers(-(2**14), 2**14, channels).astype(np.int32))
    scale = grid.scale * weight_grid.scale
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    return bias, Grid(scale, zero_point, "int32", None if weight_grid.axis is None else 0)


def along_axis(grid: Grid, axis: int) -> Grid:
    """A weight's grid, once its channels are stored along another dimension."""
    if grid.axis is None:
        return grid
    return Grid(grid.scale, grid.zero_point, grid.dtype, axis)


def pair(random: np.random.Generator, low: int, high: int) -> tuple[int, int]:
    first, second = random.integers(low, high, 2)
    return int(first), int(second)
