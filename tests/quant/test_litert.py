"""LiteRT's own kernels, in the default interpreter and in the reference one: ours against its."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from fuseq.quant.arithmetic import Arithmetic, TfliteReference, XnnPack
from fuseq.quant.arithmetic.base import Pair
from fuseq.quant.grid import slope_grid
from tests.quant.int8_grids import grid_of, near, same_on_all
from tests.quant.qdq import any_grid, every_integer, integers
from tests.quant.single_ops import Operand, nchw, nhwc, run

SEEDS = pytest.mark.parametrize("seed", range(8))
VALID, SAME = 1, 0
OURS: dict[str, Arithmetic] = {"xnnpack": XnnPack(), "reference": TfliteReference()}
KERNELS = pytest.mark.parametrize("kernels", OURS)


@SEEDS
@KERNELS
def test_relu(kernels: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid, output = any_grid(random, "int8"), any_grid(random, "int8")
    assert same_on_all("RELU", OURS[kernels].relu, grid, output, kernels=kernels)
    assert same_on_all(
        "RELU6", partial(OURS[kernels].clamp, low=0, high=6), grid, output, kernels=kernels
    )


@SEEDS
@KERNELS
@pytest.mark.parametrize("window", [((2, 2), (2, 2)), ((3, 2), (1, 2)), ((7, 5), (7, 5))])
def test_average_pool(window: tuple[Pair, Pair], kernels: str, seed: int) -> None:
    kernel, stride = window
    random = np.random.default_rng(seed)
    grid = any_grid(random, "int8")
    q = integers(random, (2, 9, 14, 15), grid)
    ours = OURS[kernels].average_pool(q, grid, grid, kernel_size=kernel, stride=stride)
    theirs = run(
        "AVERAGE_POOL_2D", [Operand(nhwc(q), grid)], nhwc(ours).shape, grid, options="Pool2D",
        padding=VALID, filterHeight=kernel[0], filterWidth=kernel[1], strideH=stride[0],
        strideW=stride[1], kernels=kernels,
    )  # fmt: skip
    assert torch.equal(ours, nchw(theirs))


@SEEDS
@KERNELS
def test_an_average_pool_that_leaves_padding_out(kernels: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid = any_grid(random, "int8")
    q = integers(random, (1, 4, 6, 8), grid)
    ours = OURS[kernels].average_pool(
        q, grid, grid, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), count_include_pad=False
    )
    theirs = run(
        "AVERAGE_POOL_2D", [Operand(nhwc(q), grid)], nhwc(ours).shape, grid, options="Pool2D",
        padding=SAME, filterHeight=3, filterWidth=3, strideH=1, strideW=1, kernels=kernels,
    )  # fmt: skip
    assert torch.equal(ours, nchw(theirs))


@SEEDS
@KERNELS
@pytest.mark.parametrize("bound", [(-0.5, 0.7), (0.0, 1.0), (0.0, 6.0), (-1.0, 2.0)])
def test_a_clamp_is_a_maximum_and_a_minimum(
    bound: tuple[float, float], kernels: str, seed: int
) -> None:
    grid = any_grid(np.random.default_rng(seed), "int8")
    q = every_integer(grid)
    theirs = q
    for code, real in zip(("MAXIMUM", "MINIMUM"), bound, strict=True):
        constant = grid.quantize(torch.tensor(real)).reshape(1)
        operands = [Operand(theirs, grid), Operand(constant, grid, True)]
        theirs = run(code, operands, q.shape, grid, options="MaximumMinimum", kernels=kernels)
    ours = OURS[kernels].clamp(q, grid, grid, *bound)
    assert torch.equal(ours, theirs)


@SEEDS
@KERNELS
@pytest.mark.parametrize("shared", [True, False])
def test_prelu(shared: bool, kernels: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid, output = any_grid(random, "int8"), any_grid(random, "int8")
    low = 0.0 if seed % 2 else -0.3
    weight = torch.from_numpy(random.uniform(low, 0.4, 1 if shared else 6).astype(np.float32))
    slopes = slope_grid(weight, "int8")
    q = integers(random, (2, 6, 9, 7), grid)
    operands = [Operand(nhwc(q), grid), Operand(slopes.quantize(weight)[None, None], slopes, True)]
    theirs = run("PRELU", operands, nhwc(q).shape, output, kernels=kernels)
    assert torch.equal(OURS[kernels].prelu(q, grid, weight, output), nchw(theirs))


@SEEDS
@KERNELS
def test_hard_swish(kernels: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid = any_grid(random, "int8", 10.0 ** random.uniform(-4, 1))
    output = near(random, grid, 0.1, 100)
    assert same_on_all(
        "HARD_SWISH", OURS[kernels].hard_swish, grid, output, "HardSwish", kernels=kernels
    )


@SEEDS
@KERNELS
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str, kernels: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid, output = any_grid(random, "int8"), any_grid(random, "int8")
    function = partial(OURS[kernels].gelu, approximate=approximate)
    assert same_on_all(
        "GELU", function, grid, output, "Gelu", approximate=approximate == "tanh", kernels=kernels
    )


@SEEDS
@KERNELS
def test_rsqrt(kernels: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid = any_grid(random, "int8", 10.0 ** random.uniform(-5, 1))
    q = every_integer(grid)[int(grid.zero_point) + 128 :]
    output = any_grid(
        random, "int8", 1 / float(grid.scale) ** 0.5 / random.choice([10, 50, 128, 300])
    )
    theirs = run("RSQRT", [Operand(q, grid)], q.shape, output, kernels=kernels)
    assert torch.equal(OURS[kernels].rsqrt(q, grid, output), theirs)


@SEEDS
@pytest.mark.parametrize("length", [2, 10, 1000])
def test_softmax_of_the_default_interpreter(length: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid, output = any_grid(random, "int8"), grid_of(1 / 256, -128)
    q = integers(random, (5, 7, length), grid)
    operands = [Operand(q, grid)]
    theirs = run(
        "SOFTMAX", operands, q.shape, output, kernels="xnnpack", options="Softmax", beta=1.0
    )
    assert torch.equal(OURS["xnnpack"].softmax(q, grid, output, -1), theirs)
