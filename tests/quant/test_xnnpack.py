"""Our integers against the default LiteRT interpreter's, element by element."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from fuseq.quant.arithmetic import XnnPack
from fuseq.quant.arithmetic.base import Pair
from fuseq.quant.grid import Grid, bias_grid, quantize_bias
from tests.quant.int8_grids import grid_of, near, same_on_all
from tests.quant.qdq import any_grid, every_integer, integers
from tests.quant.single_ops import Operand, nchw, nhwc
from tests.quant.single_ops import integers as sizes
from tests.quant.single_ops import run as run_op

XNNPACK = XnnPack()
SEEDS = pytest.mark.parametrize("seed", range(8))
VALID, SAME = 1, 0
run = partial(run_op, kernels="xnnpack")


def weights(random: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(random.integers(-127, 128, shape, dtype=np.int8))


def weight_grid(random: np.random.Generator, channels: int, axis: int) -> Grid:
    scale = torch.from_numpy(random.uniform(0.0005, 0.02, channels).astype(np.float32))
    return Grid(scale, torch.zeros(channels, dtype=torch.int32), "int8", axis)


def layer_grids(
    random: np.random.Generator, channels: int, terms: int
) -> tuple[Grid, Grid, Grid, Grid, Tensor]:
    """Grids of input, weight, bias and output, and a bias; sums fill the output grid."""
    grid, weight = any_grid(random, "int8"), weight_grid(random, channels, 0)
    real = torch.from_numpy(random.normal(0, 1, channels).astype(np.float32))
    bias = bias_grid(grid, weight, real)
    spread = float(grid.scale) * 0.01 * 4000 * terms**0.5
    output = grid_of(spread / 128, int(any_grid(random, "int8").zero_point))
    return grid, weight, bias, output, quantize_bias(real, bias)


def conv2d(random: np.random.Generator) -> tuple[Tensor, Tensor]:
    groups, inputs, outputs = int(random.choice([1, 1, 2])), int(random.integers(1, 20)), 8
    kernel, stride = int(random.integers(1, 4)), int(random.integers(1, 3))
    shape = (2, inputs * groups, 9, 7)
    weight = weights(random, outputs * groups, inputs, kernel, kernel)
    grid, w, b, output, bias = layer_grids(random, outputs * groups, weight[0].numel())
    q = integers(random, shape, grid)
    ours = XNNPACK.convolve(
        q, grid, weight, w, bias, output, stride=(stride, stride), groups=groups
    )
    operands = [
        Operand(nhwc(q), grid), Operand(nhwc(weight), w, True), Operand(bias, b, True)
    ]  # fmt: skip
    theirs = run(
        "CONV_2D", operands, nhwc(ours).shape, output, options="Conv2D",
        version=6 if groups > 1 else 3, padding=VALID, strideH=stride, strideW=stride,
        dilationHFactor=1, dilationWFactor=1,
    )  # fmt: skip
    return ours, nchw(theirs)


def depthwise(random: np.random.Generator) -> tuple[Tensor, Tensor]:
    inputs, multiplier = int(random.integers(2, 40)), int(random.choice([1, 1, 2]))
    channels, kernel = inputs * multiplier, int(random.integers(1, 6))
    stride, dilation = int(random.integers(1, 3)), int(random.choice([1, 1, 2]))
    weight = weights(random, channels, 1, kernel, kernel)
    grid, w, b, output, bias = layer_grids(random, channels, kernel * kernel)
    q = integers(random, (1, inputs, 12, 11), grid)
    ours = XNNPACK.convolve(
        q, grid, weight, w, bias, output, stride=(stride, stride), dilation=(dilation, dilation),
        groups=inputs,
    )  # fmt: skip
    stored = Operand(weight.permute(1, 2, 3, 0), Grid(w.scale, w.zero_point, "int8", 3), True)
    theirs = run(
        "DEPTHWISE_CONV_2D", [Operand(nhwc(q), grid), stored, Operand(bias, b, True)],
        nhwc(ours).shape, output, options="DepthwiseConv2D", padding=VALID, strideH=stride,
        strideW=stride, depthMultiplier=multiplier, dilationHFactor=dilation,
        dilationWFactor=dilation,
    )  # fmt: skip
    return ours, nchw(theirs)


def conv_transpose2d(random: np.random.Generator) -> tuple[Tensor, Tensor]:
    inputs, outputs = int(random.integers(1, 12)), int(random.integers(1, 12))
    kernel, stride = int(random.integers(2, 5)), int(random.integers(1, 3))
    weight = weights(random, inputs, outputs, kernel, kernel)
    grid, w, b, output, bias = layer_grids(random, outputs, inputs * kernel)
    q = integers(random, (1, inputs, 5, 6), grid)
    per_output = Grid(w.scale, w.zero_point, "int8", 1)
    ours = XNNPACK.convolve_transposed(
        q, grid, weight, per_output, bias, output, stride=(stride, stride)
    )
    operands = [
        sizes(*nhwc(ours).shape), Operand(weight.permute(1, 2, 3, 0), w, True),
        Operand(nhwc(q), grid), Operand(bias, b, True),
    ]  # fmt: skip
    theirs = run(
        "TRANSPOSE_CONV", operands, nhwc(ours).shape, output, options="TransposeConv", version=3,
        padding=VALID, strideH=stride, strideW=stride,
    )  # fmt: skip
    return ours, nchw(theirs)


def linear(random: np.random.Generator) -> tuple[Tensor, Tensor]:
    inputs, outputs = int(random.integers(1, 300)), int(random.integers(1, 40))
    weight = weights(random, outputs, inputs)
    grid, w, b, output, bias = layer_grids(random, outputs, inputs)
    q = integers(random, (5, inputs), grid)
    ours = XNNPACK.linear(q, grid, weight, w, bias, output)
    operands = [Operand(q, grid), Operand(weight, w, True), Operand(bias, b, True)]
    theirs = run(
        "FULLY_CONNECTED", operands, ours.shape, output, options="FullyConnected", version=12
    )
    return ours, theirs


@SEEDS
@pytest.mark.parametrize("layer", [conv2d, depthwise, conv_transpose2d, linear])
def test_layers(layer: Callable[[np.random.Generator], tuple[Tensor, Tensor]], seed: int) -> None:
    ours, theirs = layer(np.random.default_rng(seed))
    assert torch.equal(ours, theirs)
    assert ours.unique().numel() > 5


def test_sums_beyond_24_bits_are_rounded_to_float32_first() -> None:
    inputs, grid = 2048, grid_of(0.1, -128)
    random = np.random.default_rng(0)
    weight = torch.full((64, inputs), 127, dtype=torch.int8)
    w = weight_grid(random, 64, 0)
    real = torch.from_numpy(random.uniform(-0.5, 0.5, 64).astype(np.float32))
    bias, b = quantize_bias(real, bias_grid(grid, w, real)), bias_grid(grid, w, real)
    output = grid_of(float(grid.scale) * 0.01 * inputs * 255, -128)
    q = integers(random, (64, inputs), grid)
    assert int((weight.long() * (q[0] + 128)).sum(1)[0]) > 2**24
    ours = XNNPACK.linear(q, grid, weight, w, bias, output)
    operands = [Operand(q, grid), Operand(weight, w, True), Operand(bias, b, True)]
    theirs = run(
        "FULLY_CONNECTED", operands, ours.shape, output, options="FullyConnected", version=12
    )
    assert torch.equal(ours, theirs)


PAIRS: dict[str, tuple[Callable[..., Tensor], float, float]] = {
    "ADD": (XNNPACK.add, 2.0**-10, 255.9),
    "SUB": (XNNPACK.sub, 2.0**-10, 255.9),
}


@SEEDS
@pytest.mark.parametrize("code", PAIRS)
@pytest.mark.parametrize("broadcast", ["none", "channel", "value", "map", "first"])
def test_sums_of_two(code: str, broadcast: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    ours, low, high = PAIRS[code]
    grid_a, grid_b, output = _pair_of_grids(random, low, high)
    _check_pair(code, ours, random, grid_a, grid_b, output, broadcast)


@SEEDS
@pytest.mark.parametrize("broadcast", ["none", "channel", "value", "map", "first"])
def test_products(broadcast: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid_a, grid_b = any_grid(random, "int8"), any_grid(random, "int8")
    product = grid_of(float(grid_a.scale) * float(grid_b.scale), 0)
    output = (
        near(random, product, 2.0**-15.9, 255.9) if seed % 2 else near(random, product, 1e-3, 0.1)
    )
    _check_pair("MUL", XNNPACK.mul, random, grid_a, grid_b, output, broadcast)


@SEEDS
@pytest.mark.parametrize("relu", [0, 1])
def test_squares(relu: int, seed: int) -> None:
    """XNNPACK makes a table of the product of a value with itself."""
    random = np.random.default_rng(seed)
    for _ in range(20):
        grid = any_grid(random, "int8")
        product = grid_of(float(grid.scale) ** 2, 0)
        output = near(random, product, 2.0**-15.9, 255.9)
        q = every_integer(grid).reshape(1, 16, 16, 1)
        x = Operand(q, grid)
        theirs = run("MUL", [x, x], q.shape, output, options="Mul", fusedActivationFunction=relu)
        ours = XNNPACK.square(q, grid, output)
        if relu:
            ours = ours.clamp(min=int(output.zero_point))
        assert torch.equal(ours, theirs), (grid, output)


def _pair_of_grids(random: np.random.Generator, low: float, high: float) -> tuple[Grid, Grid, Grid]:
    output = any_grid(random, "int8")
    low, high = (low, high) if random.random() < 0.5 else (0.2, 2.0)
    first, second = (near(random, output, 1 / high, 1 / low) for _ in range(2))
    return first, second, output


def _check_pair(
    code: str,
    function: Callable[..., Tensor],
    random: np.random.Generator,
    grid_a: Grid,
    grid_b: Grid,
    output: Grid,
    broadcast: str,
) -> None:
    shape = (2, 5, 9, 7)
    others = {
        "none": shape, "channel": (1, 5, 1, 1), "value": (1, 1, 1, 1), "map": (2, 5, 1, 1),
        "first": (2, 5, 1, 1),
    }  # fmt: skip
    a, b = integers(random, shape, grid_a), integers(random, others[broadcast], grid_b)
    constant = broadcast in ("channel", "value")
    operands = [Operand(nhwc(a), grid_a), Operand(nhwc(b), grid_b, constant)]
    if broadcast == "first":
        operands.reverse()
        ours = function(b, grid_b, a, grid_a, output)
    else:
        ours = function(a, grid_a, b, grid_b, output)
    theirs = run(code, operands, nhwc(ours).shape, output, options=code.title())
    assert torch.equal(ours, nchw(theirs))


@SEEDS
def test_requantize(seed: int) -> None:
    random = np.random.default_rng(seed)
    grid = any_grid(random, "int8")
    output = near(random, grid, 2.0**-8, 2.0**7)
    assert same_on_all("QUANTIZE", XNNPACK.requantize, grid, output, "Quantize")


@SEEDS
@pytest.mark.parametrize("slope", [0.1, 0.01, 0.2, -0.3, 1.5])
def test_leaky_relu(slope: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid = any_grid(random, "int8")
    output = near(random, grid, 0.4, 80)
    function = partial(XNNPACK.leaky_relu, negative_slope=slope)
    assert same_on_all("LEAKY_RELU", function, grid, output, "LeakyRelu", alpha=slope)


@SEEDS
def test_tables(seed: int) -> None:
    random = np.random.default_rng(seed)
    grid = any_grid(random, "int8")
    assert same_on_all("TANH", XNNPACK.tanh, grid, grid_of(1 / 128, 0))
    assert same_on_all("LOGISTIC", XNNPACK.sigmoid, grid, grid_of(1 / 256, -128))


@SEEDS
def test_quantize(seed: int) -> None:
    random = np.random.default_rng(seed)
    grid = any_grid(random, "int8")
    halves = (torch.arange(-300, 300) + 0.5) * grid.scale
    extremes = torch.tensor([0.0, -0.0, 1e30, -1e30, torch.inf, -torch.inf, torch.nan])
    noise = torch.from_numpy(random.normal(0, 50, 1000).astype(np.float32)) * grid.scale
    real = torch.cat((halves, halves.nextafter(torch.tensor(0.0)), extremes, noise))
    theirs = run("QUANTIZE", [Operand(real)], real.shape, grid, options="Quantize")
    assert torch.equal(XNNPACK.quantize(real, grid), theirs)


@SEEDS
def test_dequantize(seed: int) -> None:
    grid = any_grid(np.random.default_rng(seed), "int8")
    q = every_integer(grid)
    theirs = run("DEQUANTIZE", [Operand(q, grid)], q.shape)
    assert torch.equal(XNNPACK.dequantize(q, grid), theirs)


@SEEDS
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (32, 20)])
def test_mean_of_a_map(size: Pair, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid = any_grid(random, "int8")
    output = near(random, grid, 0.5, 8)
    q = integers(random, (2, 300, *size), grid)
    q[:, ::2] = q[:, ::2].clamp(min=100)
    ours = XNNPACK.mean(q, grid, output, (2, 3))
    theirs = run(
        "MEAN", [Operand(nhwc(q), grid), sizes(1, 2)], nhwc(ours).shape, output,
        options="Reducer", keepDims=True,
    )  # fmt: skip
    assert torch.equal(ours, nchw(theirs))


@SEEDS
@pytest.mark.parametrize("dims", [(0,), (1,), (2,), (3,), (1, 2, 3), (0, 2), (1, 3), (0, 3)])
def test_means_over_any_dimensions(dims: tuple[int, ...], seed: int) -> None:
    """Of stored dimensions, which the kernel takes innermost first or last."""
    random = np.random.default_rng(seed)
    grid = any_grid(random, "int8")
    output = near(random, grid, 0.5, 8)
    q = integers(random, (2, 7, 9, 35), grid)
    ours = XNNPACK.mean(q, grid, output, dims)
    operands = [Operand(q, grid), sizes(*dims)]
    theirs = run("MEAN", operands, ours.shape, output, options="Reducer", keepDims=True)
    assert torch.equal(ours, theirs)


@SEEDS
@pytest.mark.parametrize("zero_point", [0, 7])
def test_matmul(zero_point: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid_a, grid_b = (
        any_grid(random, "int8"),
        grid_of(float(random.uniform(0.004, 0.4)), zero_point),
    )
    output = grid_of(float(grid_a.scale) * float(grid_b.scale) * random.uniform(50, 1000), 5)
    a, b = integers(random, (2, 3, 9, 20), grid_a), integers(random, (2, 3, 20, 11), grid_b)
    ours = XNNPACK.matmul(a, grid_a, b, grid_b, output)
    theirs = run(
        "BATCH_MATMUL", [Operand(a, grid_a), Operand(b, grid_b)], ours.shape, output,
        options="BatchMatMul",
    )  # fmt: skip
    assert torch.equal(ours, theirs)


@SEEDS
@pytest.mark.parametrize("align_corners", [False, True])
def test_bilinear(align_corners: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid = any_grid(random, "int8")
    inputs, outputs = random.integers(1, 30, 2), random.integers(1, 60, 2)
    outputs = inputs * 2 if seed % 2 else outputs
    size = int(outputs[0]), int(outputs[1])
    q = integers(random, (2, 5, *inputs.tolist()), grid)
    ours = XNNPACK.interpolate_bilinear(
        q, grid, grid, size=size, scale_factor=None, align_corners=align_corners
    )
    theirs = run(
        "RESIZE_BILINEAR", [Operand(nhwc(q), grid), sizes(*size)], nhwc(ours).shape, grid,
        options="ResizeBilinear", alignCorners=align_corners, halfPixelCenters=not align_corners,
    )  # fmt: skip
    assert torch.equal(ours, nchw(theirs))


FAR = {"ADD": 2.0**-10.1, "SUB": 2.0**-10.1, "MUL": 2.0**-16.1}


@SEEDS
@pytest.mark.parametrize("code", FAR)
@pytest.mark.parametrize("broadcast", ["none", "channel", "value", "map", "first"])
def test_terms_too_small_for_xnnpack(code: str, broadcast: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    output, ratio = any_grid(random, "int8"), FAR[code] * 2.0 ** random.choice([0, -2, -5, -40])
    if code == "MUL":
        grid_a = any_grid(random, "int8")
        grid_b = grid_of(float(output.scale) * ratio / float(grid_a.scale), 3)
    else:
        grid_a = near(random, output, 0.5, 2**11)
        grid_b = grid_of(float(output.scale) * ratio, -20)
        if seed % 2:
            grid_a, grid_b = grid_b, grid_a
    function = getattr(XNNPACK, code.lower())
    _check_pair(code, function, random, grid_a, grid_b, output, broadcast)


@SEEDS
@pytest.mark.parametrize("ratio", [2.0**-60, 2.0**-9, 1 / 257, 2.0**7.1, 2.0**12])
def test_a_requantize_too_far_for_xnnpack(ratio: float, seed: int) -> None:
    """Its last integers, those beyond a multiple of 16, are rounded differently."""
    random = np.random.default_rng(seed)
    grid, output = grid_of(0.01, random.choice([20, 127])), grid_of(0.01 / ratio, -7)
    q = integers(random, (1, 5, 13, 11), grid)
    operands = [Operand(nhwc(q), grid)]
    theirs = run("QUANTIZE", operands, nhwc(q).shape, output, options="Quantize")
    assert torch.equal(XNNPACK.requantize(q, grid, output), nchw(theirs))


@SEEDS
@pytest.mark.parametrize("slope", [0.0, 0.001, -0.001, 200.0])
def test_a_slope_too_far_for_xnnpack(slope: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid = any_grid(random, "int8")
    output = near(random, grid, 2.0**-9, 2.0**9)
    function = partial(XNNPACK.leaky_relu, negative_slope=slope)
    assert same_on_all("LEAKY_RELU", function, grid, output, "LeakyRelu", alpha=slope)
