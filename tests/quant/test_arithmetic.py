"""What every arithmetic shares: exact sums; and the ideal one against rational numbers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuseq.quant.arithmetic import Ideal, OnnxRuntime
from fuseq.quant.arithmetic.exact_sums import exact_sum, holds_sums
from fuseq.quant.grid import Grid
from tests.quant.qdq import any_grid, integers


def test_sums_are_exact_up_to_the_bound_of_float32() -> None:
    weight = torch.full((4, 57, 3, 3), 127, dtype=torch.int8)
    assert holds_sums(weight, 255)
    assert not holds_sums(weight.repeat(1, 2, 1, 1), 255)
    x = torch.full((16, 57, 9, 9), 255)
    x[:, ::7] = 254
    total = F.conv2d(x.float(), weight.float())
    assert torch.equal(total.double(), F.conv2d(x.double(), weight.double()))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize(("channels", "kernel"), [(3, 1), (80, 1), (1, 3), (12, 3), (64, 5)])
def test_sums_are_those_of_int64(channels: int, kernel: int, dtype: str) -> None:
    """Every way to them: float32, two halves of 16 bits, float64."""
    random = np.random.default_rng(channels)
    grid = any_grid(random, dtype)
    q = integers(random, (2, channels, 6, 7), grid)
    q[0, :, :2] = grid.qmax
    q[1, :, :2] = grid.qmin
    weight = torch.from_numpy(random.integers(-127, 128, (5, channels, kernel, kernel)))
    weight[0], weight[1] = 127, -127
    centered = q - grid.zero_point
    sums = exact_sum(F.conv2d, centered, weight.to(torch.int8), grid)
    windows = centered.long().unfold(2, kernel, 1).unfold(3, kernel, 1)
    expected = torch.einsum("nchwij,ocij->nohw", windows, weight)
    assert sums.dtype == torch.float64
    assert torch.equal(sums.long(), expected)


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
