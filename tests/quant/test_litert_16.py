"""16-bit activations: our integers against LiteRT's, in both of its kernel sets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fuseq.quant.arithmetic import Arithmetic, TfliteReference, XnnPack
from fuseq.quant.grid import Grid
from tests.quant.litert_grids import along_axis, pair, random_weight
from tests.quant.qdq import any_grid, every_integer, integers
from tests.quant.single_ops import Operand, nchw, nhwc, run
from tests.quant.single_ops import integers as sizes


def grid_of(scale: float) -> Grid:
    return Grid(torch.tensor(scale, dtype=torch.float32), torch.tensor(0), "int16")


SEEDS = pytest.mark.parametrize("seed", range(6))
KERNELS = pytest.mark.parametrize("kernels", ["reference", "xnnpack"])
OURS: dict[str, Arithmetic] = {
    "reference": TfliteReference().between("conv2d", grid_of(1.0)),
    "xnnpack": XnnPack().between("conv2d", grid_of(1.0)),
}
VALID, INT32 = 1, 2
SAME_SCALE = grid_of(2.0**-15)


def any_scale(random: np.random.Generator, near: float = 2.0**-12, octaves: float = 3) -> Grid:
    exponent = random.uniform(-octaves, octaves)
    return grid_of(near * 2.0 ** (round(exponent) if random.random() < 0.5 else exponent))


def layer(
    random: np.random.Generator, shape: tuple[int, ...], axis: int, wide: bool = False
) -> tuple[Grid, Tensor, Grid, Tensor, Operand, Grid]:
    """Grids of input and output, a weight with its grid, and a bias of 32 or 64 bits."""
    grid = any_scale(random)
    weight, weight_grid = random_weight(random, shape, axis)
    bias = torch.from_numpy(random.integers(-(2**20), 2**20, shape[axis]).astype(np.int32))
    scale = grid.scale * weight_grid.scale
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    dtype = "int64" if wide else "int32"
    bias_grid = Grid(scale, zero_point, dtype, None if weight_grid.axis is None else 0)
    output_grid = any_scale(random, float(scale.mean()) * 2**6)
    return grid, weight, weight_grid, bias, Operand(bias, bias_grid, constant=True), output_grid


@SEEDS
@KERNELS
@pytest.mark.parametrize("kind", ["dense", "grouped", "depthwise"])
def test_convolution(kind: str, kernels: str, seed: int) -> None:
    """Biases of depthwise convolutions have 64 bits, and sums then 15-bit multipliers."""
    random = np.random.default_rng(seed)
    groups = 1 if kind == "dense" else int(random.integers(2, 4))
    inside = 1 if kind == "depthwise" else int(random.integers(2, 6))
    outputs, kernel, stride = groups * int(random.integers(1, 20)), pair(random, 1, 4), (1, 2)
    shape = (outputs, inside, *kernel)
    grid, weight, weight_grid, bias, stored_bias, output_grid = layer(
        random, shape, 0, wide=kind == "depthwise"
    )
    x = integers(random, (2, groups * inside, 13, 12), grid)
    ours = OURS[kernels].convolve(
        x, grid, weight, weight_grid, bias, output_grid, stride=stride, groups=groups
    )
    fields: dict[str, Any] = {"padding": VALID, "strideH": 1, "strideW": 2}
    fields |= {"dilationHFactor": 1, "dilationWFactor": 1}
    if kind == "depthwise":
        stored = weight.permute(1, 2, 3, 0).reshape(1, *kernel, outputs)
        kernel_operand = Operand(stored, along_axis(weight_grid, 3), constant=True)
        code = "DEPTHWISE_CONV_2D"
        fields |= {"options": "DepthwiseConv2D", "depthMultiplier": outputs // groups}
    else:
        kernel_operand = Operand(nhwc(weight), weight_grid, constant=True)
        code = "CONV_2D"
        fields |= {"options": "Conv2D", "version": 8, "quantizedBiasType": INT32}
    operands = [Operand(nhwc(x), grid), kernel_operand, stored_bias]
    theirs = run(code, operands, nhwc(ours).shape, output_grid, kernels=kernels, **fields)
    assert torch.equal(ours, nchw(theirs))


@SEEDS
@KERNELS
def test_sums_of_a_convolution_wrap_around(kernels: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid, weight, weight_grid, bias, stored_bias, output_grid = layer(random, (4, 1500, 1, 1), 0)
    x = torch.full((1, 1500, 2, 2), 32767, dtype=torch.int32)
    weight = weight.abs()
    ours = OURS[kernels].convolve(x, grid, weight, weight_grid, bias, output_grid)
    operands = [
        Operand(nhwc(x), grid),
        Operand(nhwc(weight), weight_grid, constant=True),
        stored_bias,
    ]
    theirs = run(
        "CONV_2D", operands, nhwc(ours).shape, output_grid, kernels=kernels, options="Conv2D",
        version=8, quantizedBiasType=INT32, padding=VALID, strideH=1, strideW=1,
        dilationHFactor=1, dilationWFactor=1,
    )  # fmt: skip
    assert torch.equal(ours, nchw(theirs))


@SEEDS
@KERNELS
def test_transposed_convolution(kernels: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    channels, outputs = int(random.integers(1, 6)), int(random.integers(1, 24))
    kernel, stride = pair(random, 1, 5), pair(random, 1, 4)
    grid, weight, weight_grid, bias, stored_bias, output_grid = layer(
        random, (channels, outputs, *kernel), 1
    )
    x = integers(random, (2, channels, 16, 17), grid)
    ours = OURS[kernels].convolve_transposed(
        x, grid, weight, weight_grid, bias, output_grid, stride=stride
    )
    shape = nhwc(ours).shape
    stored = Operand(weight.permute(1, 2, 3, 0), along_axis(weight_grid, 0), constant=True)
    operands = [sizes(*shape), stored, Operand(nhwc(x), grid), stored_bias]
    theirs = run(
        "TRANSPOSE_CONV", operands, shape, output_grid, kernels=kernels, version=5,
        options="TransposeConv", quantizedBiasType=INT32, padding=VALID, strideH=stride[0],
        strideW=stride[1],
    )  # fmt: skip
    assert torch.equal(ours, nchw(theirs))


@SEEDS
@KERNELS
def test_linear(kernels: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    inputs, outputs = pair(random, 1, 40)
    grid, weight, weight_grid, bias, stored_bias, output_grid = layer(random, (outputs, inputs), 0)
    x = integers(random, (200, inputs), grid)
    ours = OURS[kernels].linear(x, grid, weight, weight_grid, bias, output_grid)
    operands = [Operand(x, grid), Operand(weight, weight_grid, constant=True), stored_bias]
    theirs = run(
        "FULLY_CONNECTED", operands, ours.shape, output_grid, kernels=kernels,
        options="FullyConnected", version=11 if weight_grid.axis is None else 12,
        quantizedBiasType=INT32,
    )  # fmt: skip
    assert torch.equal(ours, theirs)


@SEEDS
@KERNELS
def test_product_of_matrices(kernels: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid_a, grid_b = any_scale(random), any_scale(random)
    a, b = integers(random, (2, 3, 9, 20), grid_a), integers(random, (2, 3, 20, 7), grid_b)
    output_grid = any_scale(random, float(grid_a.scale * grid_b.scale) * 2**17)
    ours = OURS[kernels].matmul(a, grid_a, b, grid_b, output_grid)
    operands = [Operand(a, grid_a), Operand(b, grid_b)]
    theirs = run(
        "BATCH_MATMUL", operands, ours.shape, output_grid, kernels=kernels, options="BatchMatMul"
    )
    assert torch.equal(ours, theirs)


Ours = Callable[[Arithmetic, Tensor, Grid, Grid], Tensor]
UNARY: dict[str, tuple[Ours, str, Grid | None, dict[str, Any]]] = {
    "requantize": (lambda o, *args: o.requantize(*args), "QUANTIZE", None, {}),
    "relu": (lambda o, *args: o.relu(*args), "RELU", None, {}),
    "relu6": (lambda o, *args: o.clamp(*args, 0.0, 6.0), "RELU6", None, {}),
    "leaky relu": (
        lambda o, *args: o.leaky_relu(*args, 0.1), "LEAKY_RELU", None,
        {"options": "LeakyRelu", "alpha": 0.1}),
    "sigmoid": (lambda o, *args: o.sigmoid(*args), "LOGISTIC", SAME_SCALE, {}),
    "tanh": (lambda o, *args: o.tanh(*args), "TANH", SAME_SCALE, {}),
    "gelu": (
        lambda o, *args: o.gelu(*args, "none"), "GELU", None, {"options": "Gelu", "version": 2}),
}  # fmt: skip


@SEEDS
@KERNELS
@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_value(name: str, kernels: str, seed: int) -> None:
    """Scales of sigmoid and tanh beside and far from those that need no multiplier, 1 / 2**12."""
    ours, code, output_grid, fields = UNARY[name]
    random = np.random.default_rng(seed)
    grid = any_scale(random)
    if output_grid:
        grid = grid_of([1.001 * 2.0**-12, 0.999 * 2.0**-11, 2.0**-13, 1e-3, 2.0**-20, 7.3][seed])
    output_grid = output_grid or any_scale(random, float(grid.scale))
    q = every_integer(grid)
    theirs = run(code, [Operand(q, grid)], q.shape, output_grid, kernels=kernels, **fields)
    assert torch.equal(ours(OURS[kernels], q, grid, output_grid), theirs)


@pytest.mark.parametrize("near", [0.9997, 1.0, 1.0002])
@pytest.mark.parametrize("exponent", [-12, -11])
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_scales_of_the_reference_kernels_that_need_no_multiplier(
    name: str, exponent: int, near: float
) -> None:
    ours, code, _, _ = UNARY[name]
    grid = grid_of(near * 2.0**exponent)
    q = every_integer(grid)
    theirs = run(code, [Operand(q, grid)], q.shape, SAME_SCALE)
    assert torch.equal(ours(OURS["reference"], q, grid, SAME_SCALE), theirs)


@SEEDS
@KERNELS
def test_gelu_by_tanh_is_off_by_a_step_in_a_value_of_a_thousand(kernels: str, seed: int) -> None:
    """The table depends on how a machine's tanh rounds."""
    random = np.random.default_rng(seed)
    grid = any_scale(random)
    output_grid = any_scale(random, float(grid.scale))
    q = every_integer(grid)
    theirs = run(
        "GELU", [Operand(q, grid)], q.shape, output_grid, kernels=kernels, options="Gelu",
        version=2, approximate=True,
    )  # fmt: skip
    difference = (OURS[kernels].gelu(q, grid, output_grid, "tanh") - theirs).abs()
    assert int(difference.max()) <= 1
    assert float((difference > 0).float().mean()) < 1e-3
    assert "gelu" in OURS[kernels].inexact


@SEEDS
@KERNELS
def test_inverse_square_root(kernels: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid, output_grid = any_scale(random, 2.0**-8, 6), any_scale(random, 2.0**-10, 4)
    q = every_integer(grid)[32768:]
    theirs = run("RSQRT", [Operand(q, grid)], q.shape, output_grid, kernels=kernels, version=3)
    assert torch.equal(OURS[kernels].rsqrt(q, grid, output_grid), theirs)


@SEEDS
@KERNELS
def test_softmax(kernels: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid = any_scale(random, 2.0**-10, 4)
    x = integers(random, (50, int(random.integers(2, 60))), grid)
    ours = OURS[kernels].softmax(x, grid, SAME_SCALE, 1)
    theirs = run(
        "SOFTMAX", [Operand(x, grid)], x.shape, SAME_SCALE, kernels=kernels, options="Softmax",
        beta=1.0,
    )  # fmt: skip
    assert torch.equal(ours, theirs)


@SEEDS
@KERNELS
@pytest.mark.parametrize("code", ["ADD", "SUB", "MUL"])
def test_functions_of_two_values(code: str, kernels: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid_a, grid_b = any_scale(random), any_scale(random)
    scale = torch.maximum(grid_a.scale, grid_b.scale)
    if code == "MUL":
        scale = grid_a.scale * grid_b.scale * 2**14
    output_grid = any_scale(random, float(scale))
    a, b = integers(random, (200, 300), grid_a), integers(random, (200, 1), grid_b)
    ours = getattr(OURS[kernels], code.lower())(a, grid_a, b, grid_b, output_grid)
    fields: dict[str, Any] = {} if code == "MUL" else {"potScaleInt16": False}
    operands = [Operand(a, grid_a), Operand(b, grid_b)]
    theirs = run(
        code,
        operands,
        ours.shape,
        output_grid,
        kernels=kernels,
        options=code.capitalize(),
        **fields,
    )
    assert torch.equal(ours, theirs)


@SEEDS
@KERNELS
def test_pools_and_resizes(kernels: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid, arithmetic = any_scale(random), OURS[kernels]
    x = integers(random, (2, 5, 9, 11), grid)
    output_grid = any_scale(random, float(grid.scale) / 4)
    theirs = partial(run, kernels=kernels)
    ours = arithmetic.average_pool(x, grid, grid, kernel_size=(3, 2), stride=(2, 1))
    pooled = theirs(
        "AVERAGE_POOL_2D", [Operand(nhwc(x), grid)], nhwc(ours).shape, grid, options="Pool2D",
        padding=VALID, strideH=2, strideW=1, filterHeight=3, filterWidth=2,
    )  # fmt: skip
    assert torch.equal(ours, nchw(pooled))
    ours = arithmetic.mean(x, grid, output_grid, (2, 3))
    mean = theirs(
        "MEAN", [Operand(nhwc(x), grid), sizes(1, 2)], nhwc(ours).shape, output_grid,
        options="Reducer", keepDims=True,
    )  # fmt: skip
    assert torch.equal(ours, nchw(mean))
    size = pair(random, 2, 30)
    ours = arithmetic.interpolate_bilinear(
        x, grid, grid, size=size, scale_factor=None, align_corners=False
    )
    resized = theirs(
        "RESIZE_BILINEAR", [Operand(nhwc(x), grid), sizes(*size)], nhwc(ours).shape, grid,
        options="ResizeBilinear", halfPixelCenters=True,
    )  # fmt: skip
    assert torch.equal(ours, nchw(resized))


@SEEDS
@KERNELS
def test_quantize_and_steps_from_and_to_8_bits(kernels: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    wide = any_scale(random)
    narrow = any_grid(random, "int8", float(wide.scale) * 256)
    whole: dict[str, Arithmetic] = {"reference": TfliteReference(), "xnnpack": XnnPack()}
    ours = whole[kernels]
    for grid, output_grid in ((wide, narrow), (narrow, wide)):
        q = every_integer(grid)
        theirs = run("QUANTIZE", [Operand(q, grid)], q.shape, output_grid, kernels=kernels)
        assert torch.equal(ours.requantize(q, grid, output_grid), theirs)
    halves = (torch.arange(-33000, 33000) + 0.5) * wide.scale
    theirs = run("QUANTIZE", [Operand(halves)], halves.shape, wide, kernels=kernels)
    assert torch.equal(ours.quantize(halves, wide), theirs)
    q = every_integer(wide)
    theirs = run("DEQUANTIZE", [Operand(q, wide)], q.shape, kernels=kernels)
    assert torch.equal(ours.dequantize(q, wide), theirs)
