"""Our functions of one and two values against LiteRT's reference kernels, for all integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fuseq.quant.arithmetic import TfliteReference
from fuseq.quant.grid import Grid
from tests.quant.int8_grids import grid_of
from tests.quant.litert_grids import grid_near
from tests.quant.qdq import any_grid, every_integer
from tests.quant.single_ops import Operand, run

REFERENCE = TfliteReference()
SEEDS = pytest.mark.parametrize("seed", range(25))

Ours = Callable[[Tensor, Grid, Grid], Tensor]
UNARY: dict[str, tuple[Ours, str, Grid | None]] = {
    "requantize": (REFERENCE.requantize, "QUANTIZE", None),
    "relu": (REFERENCE.relu, "RELU", None),
    "sigmoid": (REFERENCE.sigmoid, "LOGISTIC", grid_of(1 / 256, -128)),
    "tanh": (REFERENCE.tanh, "TANH", grid_of(1 / 128, 0)),
}


@SEEDS
@pytest.mark.parametrize("octaves", [4, 40])
@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_value(name: str, octaves: float, seed: int) -> None:
    """Ratios of scales of up to 2**40 included: shifts then wrap around."""
    ours, code, output_grid = UNARY[name]
    random = np.random.default_rng(seed)
    grid = any_grid(random, "int8")
    output_grid = output_grid or grid_near(random, float(grid.scale), octaves)
    q = every_integer(grid)
    theirs = run(code, [Operand(q, grid)], q.shape, output_grid)
    assert torch.equal(ours(q, grid, output_grid), theirs)


@SEEDS
@pytest.mark.parametrize("slope", [0.0, 0.01, 0.25, 1.5, -0.3])
def test_leaky_relu(slope: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid = any_grid(random, "int8")
    output_grid = grid_near(random, float(grid.scale))
    q = every_integer(grid)
    ours = REFERENCE.leaky_relu(q, grid, output_grid, slope)
    operands = [Operand(q, grid)]
    theirs = run("LEAKY_RELU", operands, q.shape, output_grid, options="LeakyRelu", alpha=slope)
    assert torch.equal(ours, theirs)


BINARY: dict[str, Any] = {
    "ADD": (REFERENCE.add, "Add"),
    "SUB": (REFERENCE.sub, "Sub"),
    "MUL": (REFERENCE.mul, "Mul"),
}


@SEEDS
@pytest.mark.parametrize("broadcast", ["no", "rows", "scalar", "first"])
@pytest.mark.parametrize("code", BINARY)
def test_functions_of_two_values(code: str, broadcast: str, seed: int) -> None:
    """All 65536 pairs where nothing is broadcast."""
    ours, options = BINARY[code]
    random = np.random.default_rng(seed)
    grid_a, grid_b = any_grid(random, "int8"), any_grid(random, "int8")
    scale = torch.maximum(grid_a.scale, grid_b.scale)
    if code == "MUL":
        scale = 64 * grid_a.scale * grid_b.scale
    output_grid = grid_near(random, float(scale))
    every = every_integer(grid_a)
    a, b = every.repeat(256, 1), every.reshape(256, 1)
    if broadcast == "no":
        b = b.repeat(1, 256)
    elif broadcast == "scalar":
        b = b[int(random.integers(256))].reshape(())
    elif broadcast == "first":
        a, b = b, a
    expected = ours(a, grid_a, b, grid_b, output_grid)
    operands = [Operand(a, grid_a), Operand(b, grid_b, constant=broadcast == "scalar")]
    theirs = run(code, operands, expected.shape, output_grid, options=options)
    assert torch.equal(expected, theirs)


@SEEDS
def test_quantize_and_dequantize(seed: int) -> None:
    random = np.random.default_rng(seed)
    grid = any_grid(random, "int8")
    halves = (torch.arange(-300, 300) + 0.5) * grid.scale
    real = torch.cat((halves, torch.from_numpy(random.normal(size=3000)).float() * 64 * grid.scale))
    assert torch.equal(
        REFERENCE.quantize(real, grid), run("QUANTIZE", [Operand(real)], real.shape, grid)
    )
    q = every_integer(grid)
    assert torch.equal(
        REFERENCE.dequantize(q, grid), run("DEQUANTIZE", [Operand(q, grid)], q.shape)
    )
