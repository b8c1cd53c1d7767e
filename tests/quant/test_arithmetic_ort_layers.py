"""Our integers against ONNX Runtime's, for layers, pools and resizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fuseq.quant.arithmetic import OnnxRuntime
from fuseq.quant.grid import LIMITS, Grid
from tests.quant.qdq import Qdq, any_grid, every_integer, integers, uint8_grid

ORT = OnnxRuntime()
SEEDS = pytest.mark.parametrize("seed", range(6))
DTYPES = pytest.mark.parametrize("dtype", ["uint8", "int8"])


def test_global_average_pool_of_every_sum(tmp_path: Path) -> None:
    grid, output_grid = uint8_grid(0.5, 0), uint8_grid(0.026470588520169258, 0)
    sums = torch.arange(255 * 12 + 1, dtype=torch.int32).reshape(-1, 1)
    q = (sums // 12 + (torch.arange(12) < sums % 12)).to(torch.int32).reshape(1, -1, 3, 4)
    graph = Qdq()
    y = graph.node("GlobalAveragePool", graph.activation(q, grid))
    theirs, _ = graph.run(graph.quantize(y, output_grid), "uint8", tmp_path)
    assert torch.equal(ORT.mean(q, grid, output_grid, (2, 3)), theirs)


@SEEDS
def test_half_a_million_sums_requantized(seed: int, tmp_path: Path) -> None:
    """Enough for the last bit of a multiplier to show."""
    random = np.random.default_rng(seed)
    grid = uint8_grid(float(random.uniform(0.004, 0.4)), int(random.integers(256)))
    every = every_integer(grid)
    q = torch.stack([every.repeat(256, 1), every.reshape(256, 1).repeat(1, 256)]).unsqueeze(0)
    weight = torch.from_numpy(random.integers(-127, 128, (16, 2, 1, 1)))
    scales = torch.from_numpy(random.uniform(0.001, 0.02, 16)).float()
    weight_grid = Grid(scales, torch.zeros(16, dtype=torch.int32), "int8", 0)
    output_grid = uint8_grid(float(grid.scale) * random.uniform(0.5, 2), int(random.integers(256)))
    graph = Qdq()
    y = graph.node("Conv", graph.activation(q, grid), graph.parameter(weight, weight_grid))
    theirs, _ = graph.run(graph.quantize(y, output_grid), "uint8", tmp_path)
    assert torch.equal(ORT.convolve(q, grid, weight, weight_grid, None, output_grid), theirs)


@SEEDS
def test_addition_of_a_channel_constant_does_not_depend_on_the_layout(
    seed: int, tmp_path: Path
) -> None:
    """After a convolution the addition runs on channels-last data."""
    random = np.random.default_rng(seed)
    grid, middle, grid_b, output_grid = (any_grid(random, "uint8") for _ in range(4))
    weight_grid = Grid(middle.scale / grid.scale, torch.tensor(0, dtype=torch.int32), "int8")
    q, b = integers(random, (2, 16, 16, 16), grid), integers(random, (1, 16, 1, 1), grid_b)
    weight = torch.eye(16, dtype=torch.int8).reshape(16, 16, 1, 1)
    graph = Qdq()
    y = graph.node("Conv", graph.activation(q, grid), graph.parameter(weight, weight_grid))
    y = graph.dequantize(graph.quantize(y, middle), middle)
    y = graph.node("Add", y, graph.parameter(b, grid_b))
    theirs, ran = graph.run(graph.quantize(y, output_grid), "uint8", tmp_path)
    assert ran == ["QLinearConv", "QLinearAdd"]
    a = ORT.convolve(q, grid, weight, weight_grid, None, middle)
    assert torch.equal(ORT.add(a, middle, b, grid_b, output_grid), theirs)


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "3x3": {"padding": (1, 1)},
    "1x1": {"kernel": (1, 1)},
    "1x7": {"kernel": (1, 7)},
    "strided": {"stride": (2, 2), "padding": (1, 1)},
    "dilated": {"dilation": (2, 2), "padding": (2, 2)},
    "grouped": {"groups": 2, "padding": (1, 1)},
    "depthwise": {"groups": 8, "out": 8, "padding": (1, 1)},
    "depthwise 5x5 strided": {
        "groups": 8, "out": 8, "kernel": (5, 5), "stride": (2, 2), "padding": (2, 2)},
    "depthwise, two per channel": {"groups": 8, "padding": (1, 1)},
    "first layer": {"channels": 3, "out": 27, "padding": (1, 1)},
    "one channel": {"channels": 1, "out": 1, "padding": (1, 1)},
    "beyond float32": {"channels": 96, "padding": (1, 1)},
}  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("activation", ["none", "relu", "clamp"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str, activation: str, seed: int, tmp_path: Path) -> None:
    options = {"channels": 8, "out": 16, "kernel": (3, 3), **CONVOLUTIONS[name]}
    channels, out, kernel = (options.pop(key) for key in ("channels", "out", "kernel"))
    groups = options.setdefault("groups", 1)
    random = np.random.default_rng(seed)
    grid = any_grid(random, "uint8")
    q = integers(random, (2, channels, 11, 13), grid)
    weight = torch.from_numpy(random.integers(-127, 128, (out, channels // groups, *kernel)))
    scales = random.uniform(0.001, 0.02, out) if seed % 2 else 2.0 ** random.integers(-9, -5, out)
    zeros = torch.zeros(out, dtype=torch.int32)
    weight_grid = Grid(torch.from_numpy(scales).float(), zeros, "int8", 0)
    bias = torch.from_numpy(random.integers(-5000, 5000, out)) if seed else None
    spread = float(grid.scale) * 0.5 * weight[0].numel() ** 0.5
    output_grid = any_grid(random, "uint8", spread)
    graph = Qdq()
    inputs = [graph.activation(q, grid), graph.parameter(weight, weight_grid)]
    if bias is not None:
        bias_grid = Grid(grid.scale * weight_grid.scale, zeros, "int32", 0)
        inputs.append(graph.parameter(bias, bias_grid))
    attributes = {
        "strides": options.get("stride", (1, 1)),
        "dilations": options.get("dilation", (1, 1)),
        "pads": 2 * options.get("padding", (0, 0)),
        "group": groups,
    }
    y = graph.node("Conv", *inputs, **attributes)
    if activation != "none":
        output_grid = Grid(output_grid.scale, torch.tensor(0, dtype=torch.int32), "uint8")
    if activation == "relu":
        y = graph.node("Relu", y)
    if activation == "clamp":
        top = graph.constant(output_grid.scale * 255, "float32")
        y = graph.node("Clip", y, graph.constant(0, "float32"), top)
    theirs, ran = graph.run(graph.quantize(y, output_grid), "uint8", tmp_path)
    assert ran == ["QLinearConv"]
    ours = ORT.convolve(q, grid, weight, weight_grid, bias, output_grid, **options)
    assert torch.equal(ours, theirs)
    assert len(set(theirs.reshape(-1).tolist())) > 10


@SEEDS
@DTYPES
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("axis", [0, None])
def test_linear(axis: int | None, bias: bool, dtype: str, seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    grid, output_grid = any_grid(random, dtype), any_grid(random, dtype)
    q = integers(random, (64, 37), grid)
    weight = torch.from_numpy(random.integers(-127, 128, (11, 37)))
    scales = random.uniform(0.001, 0.02, () if axis is None else (11,))
    zeros = torch.zeros(np.shape(scales), dtype=torch.int32)
    weight_grid = Grid(torch.tensor(scales, dtype=torch.float32), zeros, "int8", axis)
    offset = torch.from_numpy(random.integers(-5000, 5000, 11)) if bias else None
    graph = Qdq()
    inputs = [graph.activation(q, grid), graph.parameter(weight, weight_grid)]
    if offset is not None:
        bias_grid = Grid(grid.scale * weight_grid.scale, zeros, "int32", axis)
        inputs.append(graph.parameter(offset, bias_grid))
    y = graph.node("Gemm", *inputs, transB=1)
    theirs, ran = graph.run(graph.quantize(y, output_grid), dtype, tmp_path)
    assert ran == ["QGemm"]
    assert torch.equal(ORT.linear(q, grid, weight, weight_grid, offset, output_grid), theirs)


@SEEDS
def test_product_of_activations(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    grid_a, grid_b = any_grid(random, "uint8"), any_grid(random, "uint8")
    output_grid = any_grid(random, "uint8", float(grid_a.scale * grid_b.scale) * 400)
    a, b = integers(random, (2, 15, 17), grid_a), integers(random, (2, 17, 19), grid_b)
    graph = Qdq()
    y = graph.node("MatMul", graph.activation(a, grid_a), graph.activation(b, grid_b))
    theirs, ran = graph.run(graph.quantize(y, output_grid), "uint8", tmp_path)
    assert ran == ["QLinearMatMul"]
    assert torch.equal(ORT.matmul(a, grid_a, b, grid_b, output_grid), theirs)


@SEEDS
@DTYPES
def test_concat(dtype: str, seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    grids = [any_grid(random, dtype) for _ in range(3)]
    output_grid = grids[0] if seed % 2 else any_grid(random, dtype)
    values = [integers(random, (1, 3 + i, 8, 9), grid) for i, grid in enumerate(grids)]
    graph = Qdq()
    names = [graph.activation(q, grid) for q, grid in zip(values, grids, strict=True)]
    y = graph.node("Concat", *names, axis=1)
    theirs, ran = graph.run(graph.quantize(y, output_grid), dtype, tmp_path)
    assert ran == ["QLinearConcat"]
    assert torch.equal(ORT.concat(values, grids, output_grid, 1), theirs)


@SEEDS
@DTYPES
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "pad"), [(2, 2, 0), (3, 2, 1), (5, 1, 2), (7, 7, 0)])
def test_average_pool(
    kernel: int, stride: int, pad: int, include: bool, dtype: str, seed: int, tmp_path: Path
) -> None:
    random = np.random.default_rng(seed)
    grid = any_grid(random, dtype)
    output_grid = grid if seed % 2 else any_grid(random, dtype, float(grid.scale))
    q = integers(random, (2, 4, 14, 15), grid)
    attributes = {
        "kernel_shape": [kernel] * 2,
        "strides": [stride] * 2,
        "pads": [pad] * 4,
        "count_include_pad": int(include),
    }
    graph = Qdq()
    y = graph.node("AveragePool", graph.activation(q, grid), **attributes)
    theirs, ran = graph.run(graph.quantize(y, output_grid), dtype, tmp_path)
    assert ran == ["QLinearAveragePool"]
    ours = ORT.average_pool(
        q, grid, output_grid,
        kernel_size=(kernel, kernel), stride=(stride, stride), padding=(pad, pad),
        count_include_pad=include,
    )  # fmt: skip
    assert torch.equal(ours, theirs)


@SEEDS
@DTYPES
@pytest.mark.parametrize("size", [(4, 4), (9, 11), (64, 64)])
def test_global_average_pool(size: tuple[int, int], dtype: str, seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    grid = any_grid(random, dtype)
    output_grid = any_grid(random, dtype, float(grid.scale) / 8)
    q = integers(random, (2, 33, *size), grid)
    graph = Qdq()
    y = graph.node("GlobalAveragePool", graph.activation(q, grid))
    theirs, ran = graph.run(graph.quantize(y, output_grid), dtype, tmp_path)
    assert ran == ["QLinearGlobalAveragePool"]
    assert torch.equal(ORT.mean(q, grid, output_grid, (2, 3)), theirs)


@SEEDS
@DTYPES
@pytest.mark.parametrize("dim", [1, -1])
def test_softmax(dim: int, dtype: str, seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    grid = any_grid(random, dtype)
    limit = torch.tensor(LIMITS[dtype][0], dtype=torch.int32)
    output_grid = Grid(torch.tensor(1 / 256 if seed % 2 else 1 / 255), limit, dtype)
    q = integers(random, (3, 10, 7), grid)
    graph = Qdq()
    y = graph.node("Softmax", graph.activation(q, grid), axis=dim)
    theirs, ran = graph.run(graph.quantize(y, output_grid), dtype, tmp_path)
    assert ran == ["QLinearSoftmax"]
    assert torch.equal(ORT.softmax(q, grid, output_grid, dim), theirs)


def test_softmax_of_one_value_overflows(tmp_path: Path) -> None:
    grid = uint8_grid(0.1, 0)
    q = torch.tensor([[3], [200]], dtype=torch.int32)
    graph = Qdq()
    y = graph.node("Softmax", graph.activation(q, grid), axis=1)
    theirs, _ = graph.run(graph.quantize(y, uint8_grid(1 / 256, 0)), "uint8", tmp_path)
    assert torch.equal(ORT.softmax(q, grid, uint8_grid(1 / 256, 0), 1), theirs)
    assert theirs.tolist() == [[0], [0]]


@SEEDS
def test_prelu(seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    grid, output_grid = any_grid(random, "uint8"), any_grid(random, "uint8")
    slope = torch.from_numpy(random.uniform(-0.5, 0.5, 5)).float()
    q = integers(random, (2, 5, 16, 16), grid)
    graph = Qdq()
    slopes = graph.constant(slope.reshape(5, 1, 1), "float32")
    y = graph.node("PRelu", graph.activation(q, grid), slopes)
    theirs, ran = graph.run(graph.quantize(y, output_grid), "uint8", tmp_path)
    assert ran == ["DequantizeLinear", "PRelu", "QuantizeLinear"]
    assert torch.equal(ORT.prelu(q, grid, slope, output_grid), theirs)


@SEEDS
@DTYPES
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("factor", [0.5, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("by_size", [False, True])
def test_bilinear_resize(
    by_size: bool, factor: float, align_corners: bool, dtype: str, seed: int, tmp_path: Path
) -> None:
    """On one grid, a factor of two makes ties common."""
    random = np.random.default_rng(seed)
    grid = any_grid(random, dtype)
    output_grid = grid if seed % 2 else any_grid(random, dtype)
    q = integers(random, (1, 3, 9, 11), grid)
    size = (int(9 * factor), int(11 * factor))
    graph = Qdq()
    x = graph.activation(q, grid)
    if by_size:
        target = ["", "", graph.constant([1, 3, *size], "int64")]
    else:
        target = ["", graph.constant([1, 1, factor, factor], "float32")]
    mode = "align_corners" if align_corners else "half_pixel"
    y = graph.node("Resize", x, *target, mode="linear", coordinate_transformation_mode=mode)
    theirs, ran = graph.run(graph.quantize(y, output_grid), dtype, tmp_path)
    assert ran == ["DequantizeLinear", "Resize", "QuantizeLinear"]
    ours = ORT.interpolate_bilinear(
        q, grid, output_grid,
        size=size if by_size else None,
        scale_factor=None if by_size else (factor, factor),
        align_corners=align_corners,
    )  # fmt: skip
    assert torch.equal(ours, theirs)
