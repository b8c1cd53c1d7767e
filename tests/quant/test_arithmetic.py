"""What every arithmetic shares: exact sums; and the ideal one against rational numbers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuseq.quant.arithmetic import Ideal, OnnxRuntime
from fuseq.quant.arithmetic.base import accumulator_dtype
from fuseq.quant.grid import Grid
from tests.quant.qdq import any_grid, integers


def test_sums_are_exact_up_to_the_bound_of_float32() -> None:
    grid = Grid(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), "uint8")
    weight = torch.full((4, 57, 3, 3), 127, dtype=torch.int8)
    assert accumulator_dtype(weight, grid) is torch.float32
    assert accumulator_dtype(weight.repeat(1, 2, 1, 1), grid) is torch.float64
    x = torch.full((16, 57, 9, 9), 255)
    x[:, ::7] = 254
    total = F.conv2d(x.float(), weight.float())
    assert torch.equal(total.double(), F.conv2d(x.double(), weight.double()))


def test_autocast_does_not_reach_the_integers() -> None:
    random = np.random.default_rng(0)
    grid, output_grid = any_grid(random, "uint8"), any_grid(random, "uint8", 400.0)
    weight_grid = Grid(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), "int8")
    q = integers(random, (2, 8, 9, 9), grid)
    weight = torch.from_numpy(random.integers(-127, 128, (8, 8, 3, 3)))
    plain = OnnxRuntime().convolve(q, grid, weight, weight_grid, None, output_grid)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            OnnxRuntime().convolve(q, grid, weight, weight_grid, None, output_grid), plain
        )


@pytest.mark.parametrize("seed", range(6))
def test_ideal_rounds_the_exact_rational_once(seed: int) -> None:
    random = np.random.default_rng(seed)
    grid_a, grid_b, output_grid = (any_grid(random, "uint8") for _ in range(3))
    a, b = integers(random, (200,), grid_a), integers(random, (200,), grid_b)

    def real(q: Tensor, grid: Grid) -> list[Fraction]:
        scale = Fraction(float(grid.scale))
        return [scale * (int(value) - int(grid.zero_point)) for value in q]

    def nearest(values: list[Fraction]) -> list[int]:
        scale, zero_point = Fraction(float(output_grid.scale)), int(output_grid.zero_point)
        return [min(max(round(v / scale) + zero_point, 0), 255) for v in values]

    pairs = list(zip(real(a, grid_a), real(b, grid_b), strict=True))
    ideal = Ideal()
    total = ideal.add(a, grid_a, b, grid_b, output_grid)
    assert total.tolist() == nearest([x + y for x, y in pairs])
    product = ideal.mul(a, grid_a, b, grid_b, output_grid)
    assert product.tolist() == nearest([x * y for x, y in pairs])
