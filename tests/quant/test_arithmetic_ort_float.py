"""Ops with a value of 16 bits against ONNX Runtime, which computes them in float.

What works element by element must agree in every integer; what adds in an order of the machine's
own, within one step.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fuseq.quant.arithmetic import OnnxRuntime
from fuseq.quant.arithmetic.base import Arithmetic
from fuseq.quant.grid import LIMITS, Grid
from tests.quant.qdq import Qdq, integers

ORT = OnnxRuntime()
WIDTHS = ("uint8", "uint16")
SEEDS = pytest.mark.parametrize("seed", range(3))
PAIRS = pytest.mark.parametrize(
    "dtypes", [pair for pair in itertools.product(WIDTHS, repeat=2) if "uint16" in pair]
)
TRIPLES = pytest.mark.parametrize(
    "dtypes", [triple for triple in itertools.product(WIDTHS, repeat=3) if "uint16" in triple]
)


def grid_over(random: np.random.Generator, dtype: str, width: float, zero: float = 0.5) -> Grid:
    """A grid about `width` wide, zero at about the given share of it."""
    largest = LIMITS[dtype][1]
    scale = width * random.uniform(0.8, 1.2) / largest
    if random.random() < 0.3:
        scale = 2.0 ** round(np.log2(scale))
    zero_point = round(zero * largest * random.uniform(0.8, 1.2))
    return Grid(
        torch.tensor(scale, dtype=torch.float32), torch.tensor(zero_point, dtype=torch.int32), dtype
    )


Unary = tuple[
    Callable[[Qdq, str], str],
    Callable[[Arithmetic, Tensor, Grid, Grid], Tensor],
    list[str],
    tuple[float, float],
]
CENTERED, SHARE = (8.0, 0.5), (1.5, 0.1)
"""Width of the output's grid, and where zero is on it."""
SLOPES = torch.linspace(-0.3, 0.4, 5)

UNARY: dict[str, Unary] = {
    "requantize": (lambda g, x: x, lambda ort, x, a, b: ort.requantize(x, a, b), [], CENTERED),
    "relu": (
        lambda g, x: g.node("Relu", x), lambda ort, x, a, b: ort.relu(x, a, b), ["Relu"],
        CENTERED),
    "clamp": (
        lambda g, x: g.node("Clip", x, g.constant(-0.5, "float32"), g.constant(0.7, "float32")),
        lambda ort, x, a, b: ort.clamp(x, a, b, -0.5, 0.7), ["Clip"], CENTERED),
    "leaky relu": (
        lambda g, x: g.node("LeakyRelu", x, alpha=0.1),
        lambda ort, x, a, b: ort.leaky_relu(x, a, b, 0.1), ["LeakyRelu"], CENTERED),
    "sigmoid": (
        lambda g, x: g.node("Sigmoid", x), lambda ort, x, a, b: ort.sigmoid(x, a, b), ["Sigmoid"],
        SHARE),
    "tanh": (
        lambda g, x: g.node("Tanh", x), lambda ort, x, a, b: ort.tanh(x, a, b), ["Tanh"],
        (2.5, 0.5)),
    "hard sigmoid": (
        lambda g, x: g.node("HardSigmoid", x, alpha=1 / 6, beta=0.5),
        lambda ort, x, a, b: ort.hard_sigmoid(x, a, b), ["HardSigmoid"], SHARE),
    "hard swish": (
        lambda g, x: g.node("HardSwish", x), lambda ort, x, a, b: ort.hard_swish(x, a, b),
        ["HardSigmoid", "Mul"], CENTERED),
    "prelu": (
        lambda g, x: g.node("PRelu", x, g.constant(SLOPES.reshape(5, 1, 1), "float32")),
        lambda ort, x, a, b: ort.prelu(x, a, SLOPES, b), ["PRelu"],
        CENTERED),
    "average pool": (
        lambda g, x: g.node(
            "AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        lambda ort, x, a, b: ort.average_pool(
            x, a, b, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), count_include_pad=False),
        ["AveragePool"], CENTERED),
    "resize": (
        lambda g, x: g.node(
            "Resize", x, "", g.constant([1, 1, 1.5, 1.5], "float32"), mode="linear",
            coordinate_transformation_mode="half_pixel"),
        lambda ort, x, a, b: ort.interpolate_bilinear(
            x, a, b, size=None, scale_factor=(1.5, 1.5), align_corners=False),
        ["Resize"], CENTERED),
}  # fmt: skip


@SEEDS
@PAIRS
@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_value(
    name: str, dtypes: tuple[str, str], seed: int, tmp_path: Path
) -> None:
    build, ours, ops, (width, zero) = UNARY[name]
    random = np.random.default_rng(seed)
    grid, output_grid = grid_over(random, dtypes[0], 8.0), grid_over(random, dtypes[1], width, zero)
    q = integers(random, (2, 5, 19, 23), grid)
    graph = Qdq()
    y = graph.quantize(build(graph, graph.activation(q, grid)), output_grid)
    theirs, ran = graph.run(y, dtypes[1], tmp_path)
    assert ran == ["DequantizeLinear", *ops, "QuantizeLinear"]
    assert len(theirs.unique()) > 10
    assert torch.equal(ours(ORT.between(name, grid, output_grid), q, grid, output_grid), theirs)


@TRIPLES
@pytest.mark.parametrize("broadcast", [False, True])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_functions_of_two_values(
    op: str, broadcast: bool, dtypes: tuple[str, str, str], tmp_path: Path
) -> None:
    random = np.random.default_rng(len(op))
    grids = [grid_over(random, dtype, 8.0) for dtype in dtypes]
    a = integers(random, (2, 5, 19, 23), grids[0])
    b = integers(random, (1, 5, 1, 1) if broadcast else (2, 5, 19, 23), grids[1])
    if op == "Div":
        b = torch.where(b == grids[1].zero_point, b ^ 1, b)
    graph = Qdq()
    y = graph.node(op, graph.activation(a, grids[0]), graph.activation(b, grids[1]))
    theirs, ran = graph.run(graph.quantize(y, grids[2]), dtypes[2], tmp_path)
    assert ran == ["DequantizeLinear", "DequantizeLinear", op, "QuantizeLinear"]
    assert len(theirs.unique()) > 10
    kernel = getattr(ORT.between(op.lower(), *grids), op.lower())
    assert torch.equal(kernel(a, grids[0], b, grids[1], grids[2]), theirs)


@TRIPLES
def test_concat(dtypes: tuple[str, str, str], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    *grids, output_grid = (grid_over(random, dtype, 8.0) for dtype in dtypes)
    values = [integers(random, (1, 3 + i, 8, 9), grid) for i, grid in enumerate(grids)]
    graph = Qdq()
    names = [graph.activation(q, grid) for q, grid in zip(values, grids, strict=True)]
    y = graph.quantize(graph.node("Concat", *names, axis=1), output_grid)
    theirs, ran = graph.run(y, dtypes[2], tmp_path)
    assert "QLinearConcat" not in ran
    arithmetic = ORT.between("concat", output_grid, *grids)
    assert torch.equal(arithmetic.concat(values, grids, output_grid, 1), theirs)


def near(ours: Tensor, theirs: Tensor) -> bool:
    """Equal but for one step in a value of a hundred, among values that are not all one."""
    step = (ours - theirs).abs()
    mostly = float((step > 0).double().mean()) < 0.01
    return len(theirs.unique()) > 10 and int(step.max()) <= 1 and mostly


LAYERS = {"3x3": (16, 24, 3, 1), "1x1": (48, 16, 1, 1), "depthwise": (12, 12, 5, 12)}


@SEEDS
@PAIRS
@pytest.mark.parametrize("name", LAYERS)
def test_convolution(name: str, dtypes: tuple[str, str], seed: int, tmp_path: Path) -> None:
    channels, out, kernel, groups = LAYERS[name]
    random = np.random.default_rng(seed)
    grid = grid_over(random, dtypes[0], 2.0, 0.1 * seed)
    q = integers(random, (1, channels, 17, 21), grid)
    weight = torch.from_numpy(random.integers(-127, 128, (out, channels // groups, kernel, kernel)))
    zeros = torch.zeros(out, dtype=torch.int32)
    scales = torch.from_numpy(random.uniform(0.001, 0.02, out)).float()
    weight_grid = Grid(scales, zeros, "int8", 0)
    bias_grid = Grid(grid.scale * scales, zeros, "int32", 0)
    bias = bias_grid.quantize(torch.from_numpy(random.uniform(-2, 2, out)))
    spread = float(scales.mean()) * 100 * (channels // groups * kernel**2) ** 0.5
    output_grid = grid_over(random, dtypes[1], 4 * spread)
    graph = Qdq()
    inputs = [graph.activation(q, grid), graph.parameter(weight, weight_grid)]
    y = graph.node(
        "Conv", *inputs, graph.parameter(bias, bias_grid), pads=[kernel // 2] * 4, group=groups
    )
    theirs, ran = graph.run(graph.quantize(y, output_grid), dtypes[1], tmp_path)
    assert "Conv" in ran
    arithmetic = ORT.between("conv2d", grid, output_grid)
    assert "conv2d" in arithmetic.inexact
    ours = arithmetic.convolve(
        q, grid, weight, weight_grid, bias, output_grid,
        padding=(kernel // 2, kernel // 2), groups=groups,
    )  # fmt: skip
    assert near(ours, theirs)


TRANSPOSED = {
    "2x2": (16, 24, 2, 2, 0, 1),
    "4x4": (8, 12, 4, 2, 1, 1),
    "groups": (12, 8, 3, 2, 1, 4),
}


@SEEDS
@pytest.mark.parametrize("dtypes", [("uint8", "uint8"), ("uint16", "uint8")])
@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolution(
    name: str, dtypes: tuple[str, str], seed: int, tmp_path: Path
) -> None:
    """In float between quantizers even with 8 bits; groups share the scales of their channels."""
    channels, out, kernel, stride, padding, groups = TRANSPOSED[name]
    random = np.random.default_rng(seed)
    grid = grid_over(random, dtypes[0], 2.0, 0.1 * seed)
    q = integers(random, (2, channels, 17, 13), grid)
    each = out // groups
    weight = torch.from_numpy(random.integers(-127, 128, (channels, each, kernel, kernel)))
    zeros = torch.zeros(each, dtype=torch.int32)
    scales = torch.from_numpy(random.uniform(0.001, 0.02, each)).float()
    weight_grid = Grid(scales, zeros, "int8", 1)
    scale_of_bias = grid.scale * scales.repeat(groups)
    bias_grid = Grid(scale_of_bias, zeros.repeat(groups), "int32", 0)
    bias = bias_grid.quantize(torch.from_numpy(random.uniform(-2, 2, out)))
    output_grid = grid_over(random, dtypes[1], 400 * float(scales.mean()) * channels**0.5)
    graph = Qdq()
    y = graph.node(
        "ConvTranspose", graph.activation(q, grid), graph.parameter(weight, weight_grid),
        graph.parameter(bias, bias_grid), pads=[padding] * 4, strides=[stride] * 2, group=groups,
    )  # fmt: skip
    theirs, ran = graph.run(graph.quantize(y, output_grid), dtypes[1], tmp_path)
    assert "ConvTranspose" in ran
    arithmetic = ORT.between("conv_transpose2d", grid, output_grid)
    assert "conv_transpose2d" in arithmetic.inexact
    ours = arithmetic.convolve_transposed(
        q, grid, weight, weight_grid, bias, output_grid,
        stride=(stride, stride), padding=(padding, padding), groups=groups,
    )  # fmt: skip
    assert near(ours, theirs)


@SEEDS
@PAIRS
def test_linear(dtypes: tuple[str, str], seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    grid, output_grid = grid_over(random, dtypes[0], 2.0), grid_over(random, dtypes[1], 40.0)
    q = integers(random, (64, 37), grid)
    weight = torch.from_numpy(random.integers(-127, 128, (11, 37)))
    zeros = torch.zeros(11, dtype=torch.int32)
    weight_grid = Grid(torch.from_numpy(random.uniform(0.01, 0.02, 11)).float(), zeros, "int8", 0)
    bias = torch.from_numpy(random.integers(-5000, 5000, 11))
    bias_grid = Grid(grid.scale * weight_grid.scale, zeros, "int32", 0)
    graph = Qdq()
    inputs = [graph.activation(q, grid), graph.parameter(weight, weight_grid)]
    y = graph.node("Gemm", *inputs, graph.parameter(bias, bias_grid), transB=1)
    theirs, ran = graph.run(graph.quantize(y, output_grid), dtypes[1], tmp_path)
    assert "Gemm" in ran
    arithmetic = ORT.between("linear", grid, output_grid)
    assert near(arithmetic.linear(q, grid, weight, weight_grid, bias, output_grid), theirs)


@PAIRS
@pytest.mark.parametrize("size", [(4, 4), (64, 64)])
def test_global_average_pool(
    size: tuple[int, int], dtypes: tuple[str, str], tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    grid = grid_over(random, dtypes[0], 2.0)
    output_grid = grid_over(random, dtypes[1], 2.0)
    brightness = torch.linspace(0, 1, 512).reshape(-1, 1, 1)
    q = (integers(random, (2, 512, *size), grid) * brightness).to(torch.int32)
    graph = Qdq()
    y = graph.node("GlobalAveragePool", graph.activation(q, grid))
    theirs, ran = graph.run(graph.quantize(y, output_grid), dtypes[1], tmp_path)
    assert ran == ["DequantizeLinear", "GlobalAveragePool", "QuantizeLinear"]
    arithmetic = ORT.between("mean", grid, output_grid)
    assert near(arithmetic.mean(q, grid, output_grid, (2, 3)), theirs)


def test_eight_bits_stay_with_the_integer_kernels() -> None:
    random = np.random.default_rng(0)
    narrow, wide = grid_over(random, "uint8", 1.0), grid_over(random, "uint16", 1.0)
    assert ORT.between("add", narrow, narrow) is ORT
    assert ORT.inexact == frozenset()
    assert ORT.between("add", narrow, wide) is not ORT
    assert ORT.between("add", wide, wide).between("add", wide) is ORT.between("add", wide)
