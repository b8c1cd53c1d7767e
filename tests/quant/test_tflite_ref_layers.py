"""Our layers against LiteRT's reference kernels, integer for integer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fuseq.quant.arithmetic import TfliteReference
from tests.quant.int8_grids import grid_of
from tests.quant.litert_grids import (
    along_axis,
    grid_near,
    pair,
    random_bias,
    random_weight,
)
from tests.quant.qdq import any_grid, integers
from tests.quant.single_ops import Operand, nchw, nhwc, run
from tests.quant.single_ops import integers as sizes

REFERENCE = TfliteReference()
SEEDS = pytest.mark.parametrize("seed", range(12))
VALID = 1


@SEEDS
@pytest.mark.parametrize("octaves", [5, 40])
@pytest.mark.parametrize("depthwise", [False, True])
def test_convolution(depthwise: bool, octaves: int, seed: int) -> None:
    """Any ratio of the scales: beyond 2**31 shifts wrap around, below 2**-32 all is zero."""
    random = np.random.default_rng(seed)
    channels = int(random.integers(1, 7))
    groups = channels if depthwise else int(random.choice([1, channels]))
    outputs = groups * int(random.integers(1, 4))
    kernel, stride, dilation = (pair(random, 1, 4), pair(random, 1, 3), (1, 1))
    if stride == (1, 1):
        dilation = pair(random, 1, 3)
    grid = any_grid(random, "int8")
    weight, weight_grid = random_weight(random, (outputs, channels // groups, *kernel), 0)
    bias, bias_grid = random_bias(random, grid, weight_grid, outputs)
    output_grid = grid_near(random, float(grid.scale * weight_grid.scale.mean()) * 256, octaves)
    x = integers(random, (2, channels, 9, 8), grid)
    ours = REFERENCE.convolve(
        x, grid, weight, weight_grid, bias, output_grid,
        stride=stride, dilation=dilation, groups=groups,
    )  # fmt: skip
    geometry: dict[str, Any] = {
        "padding": VALID, "strideH": stride[0], "strideW": stride[1],
        "dilationHFactor": dilation[0], "dilationWFactor": dilation[1],
    }  # fmt: skip
    if depthwise:
        stored = weight.permute(1, 2, 3, 0).reshape(1, *kernel, outputs)
        kernels = Operand(stored, along_axis(weight_grid, 3), constant=True)
        code, options, version = "DEPTHWISE_CONV_2D", "DepthwiseConv2D", 3
        geometry["depthMultiplier"] = outputs // channels
    else:
        kernels = Operand(nhwc(weight), weight_grid, constant=True)
        code, options, version = "CONV_2D", "Conv2D", 3 if groups == 1 else 6
    theirs = run(
        code, [Operand(nhwc(x), grid), kernels, Operand(bias, bias_grid, constant=True)],
        nhwc(ours).shape, output_grid, options=options, version=version, **geometry,
    )  # fmt: skip
    assert torch.equal(ours, nchw(theirs))


@SEEDS
def test_transposed_convolution(seed: int) -> None:
    random = np.random.default_rng(seed)
    channels, outputs = pair(random, 1, 6)
    kernel, stride = pair(random, 1, 5), pair(random, 1, 4)
    grid = any_grid(random, "int8")
    weight, weight_grid = random_weight(random, (channels, outputs, *kernel), 1)
    bias, bias_grid = random_bias(random, grid, weight_grid, outputs)
    output_grid = grid_near(random, float(grid.scale * weight_grid.scale.mean()) * 256)
    x = integers(random, (2, channels, 4, 5), grid)
    ours = REFERENCE.convolve_transposed(
        x, grid, weight, weight_grid, bias, output_grid, stride=stride
    )
    shape = nhwc(ours).shape
    operands = [
        sizes(*shape),
        Operand(weight.permute(1, 2, 3, 0), along_axis(weight_grid, 0), constant=True),
        Operand(nhwc(x), grid),
        Operand(bias, bias_grid, constant=True),
    ]
    theirs = run(
        "TRANSPOSE_CONV", operands, shape, output_grid, options="TransposeConv", version=3,
        padding=VALID, strideH=stride[0], strideW=stride[1],
    )  # fmt: skip
    assert torch.equal(ours, nchw(theirs))


@SEEDS
def test_linear(seed: int) -> None:
    random = np.random.default_rng(seed)
    inputs, outputs = pair(random, 1, 40)
    grid = any_grid(random, "int8")
    weight, weight_grid = random_weight(random, (outputs, inputs), 0)
    bias, bias_grid = random_bias(random, grid, weight_grid, outputs)
    output_grid = grid_near(random, float(grid.scale * weight_grid.scale.mean()) * 64)
    x = integers(random, (200, inputs), grid)
    ours = REFERENCE.linear(x, grid, weight, weight_grid, bias, output_grid)
    operands = [
        Operand(x, grid),
        Operand(weight, weight_grid, constant=True),
        Operand(bias, bias_grid, constant=True),
    ]
    version = 4 if weight_grid.axis is None else 12
    theirs = run(
        "FULLY_CONNECTED", operands, ours.shape, output_grid, options="FullyConnected",
        version=version,
    )  # fmt: skip
    assert torch.equal(ours, theirs)


@SEEDS
def test_product_of_matrices(seed: int) -> None:
    random = np.random.default_rng(seed)
    grid_a, grid_b = any_grid(random, "int8"), any_grid(random, "int8")
    depth = int(random.integers(1, 40))
    a, b = integers(random, (2, 3, 9, depth), grid_a), integers(random, (2, 3, depth, 7), grid_b)
    output_grid = grid_near(random, float(grid_a.scale * grid_b.scale) * 64)
    ours = REFERENCE.matmul(a, grid_a, b, grid_b, output_grid)
    operands = [Operand(a, grid_a), Operand(b, grid_b)]
    theirs = run("BATCH_MATMUL", operands, ours.shape, output_grid, options="BatchMatMul")
    assert torch.equal(ours, theirs)


def test_padding_that_counts_in_an_average_is_real_zero() -> None:
    random = np.random.default_rng(0)
    grid = any_grid(random, "int8")
    x = integers(random, (2, 3, 9, 8), grid)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), value=int(grid.zero_point))
    window: dict[str, Any] = {"kernel_size": (3, 3), "stride": (2, 2)}
    ours = REFERENCE.average_pool(x, grid, grid, padding=(1, 1), **window)
    assert torch.equal(ours, REFERENCE.average_pool(padded, grid, grid, **window))


@SEEDS
def test_global_average_pool(seed: int) -> None:
    random = np.random.default_rng(seed)
    grid = any_grid(random, "int8")
    output_grid = grid_near(random, float(grid.scale) / 4, 4)
    x = integers(random, (4, 30, *pair(random, 1, 30)), grid)
    ours = REFERENCE.mean(x, grid, output_grid, (2, 3))
    theirs = run(
        "MEAN", [Operand(nhwc(x), grid), sizes(1, 2)], nhwc(ours).shape, output_grid,
        options="Reducer", keepDims=True,
    )  # fmt: skip
    assert torch.equal(ours, nchw(theirs))


@SEEDS
@pytest.mark.parametrize("align_corners", [False, True])
def test_bilinear_resize(align_corners: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    grid = any_grid(random, "int8")
    size = (int(random.choice([1, 2, 3, 41])), int(random.integers(1, 50)))
    x = integers(random, (2, 3, *pair(random, 1, 20)), grid)
    ours = REFERENCE.interpolate_bilinear(
        x, grid, grid, size=size, scale_factor=None, align_corners=align_corners
    )
    theirs = run(
        "RESIZE_BILINEAR", [Operand(nhwc(x), grid), sizes(*size)], nhwc(ours).shape, grid,
        options="ResizeBilinear", alignCorners=align_corners, halfPixelCenters=not align_corners,
    )  # fmt: skip
    assert torch.equal(ours, nchw(theirs))


@SEEDS
@pytest.mark.parametrize("span", [8, 64, 256])
@pytest.mark.parametrize("octaves", [5, 12])
def test_softmax(octaves: float, span: int, seed: int) -> None:
    """Along channels, which are last in the file."""
    random = np.random.default_rng(seed)
    grid = grid_near(random, 2.0**-4, octaves)
    shape = (2, int(random.integers(1, 60)), 5, 4)
    x = torch.from_numpy(random.integers(-128, span - 128, shape, dtype=np.int32))
    output_grid = grid_of(1 / 256, -128)
    ours = REFERENCE.softmax(x, grid, output_grid, 1)
    operands = [Operand(nhwc(x), grid)]
    theirs = run("SOFTMAX", operands, nhwc(x).shape, output_grid, options="Softmax", beta=1.0)
    assert torch.equal(ours, nchw(theirs))
