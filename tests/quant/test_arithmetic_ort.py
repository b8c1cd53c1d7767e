"""Our integers against ONNX Runtime's, element by element, and the ops its optimizer makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fuseq.quant.arithmetic import OnnxRuntime
from fuseq.quant.grid import Grid
from tests.quant.qdq import Qdq, any_grid, every_integer, uint8_grid

ORT = OnnxRuntime()
SEEDS = pytest.mark.parametrize("seed", range(6))
DTYPES = pytest.mark.parametrize("dtype", ["uint8", "int8"])


Case = tuple[Callable[[Qdq, str], str], Callable[[Tensor, Grid, Grid], Tensor], list[str]]
FLOAT = ["DequantizeLinear", "QuantizeLinear"]


def _float(*ops: str) -> list[str]:
    return [FLOAT[0], *ops, FLOAT[1]]


UNARY: dict[str, Case] = {
    "requantize": (lambda g, x: x, ORT.requantize, FLOAT),
    "requantize as a kernel": (
        lambda g, x: g.node("LeakyRelu", x, alpha=1.0), ORT.requantize, ["QLinearLeakyRelu"]),
    "sigmoid": (lambda g, x: g.node("Sigmoid", x), ORT.sigmoid, ["QLinearSigmoid"]),
    "leaky relu": (
        lambda g, x: g.node("LeakyRelu", x, alpha=0.1),
        lambda x, a, b: ORT.leaky_relu(x, a, b, 0.1), ["QLinearLeakyRelu"]),
    "tanh": (lambda g, x: g.node("Tanh", x), ORT.tanh, _float("Tanh")),
    "clamp": (
        lambda g, x: g.node("Clip", x, g.constant(-0.5, "float32"), g.constant(0.7, "float32")),
        lambda x, a, b: ORT.clamp(x, a, b, -0.5, 0.7), _float("Clip")),
    "hard sigmoid": (
        lambda g, x: g.node("HardSigmoid", x, alpha=1 / 6, beta=0.5),
        ORT.hard_sigmoid, _float("HardSigmoid")),
    "hard swish": (
        lambda g, x: g.node("HardSwish", x), ORT.hard_swish, _float("HardSigmoid", "Mul")),
    "silu": (
        lambda g, x: g.node("Mul", x, g.node("Sigmoid", x)),
        ORT.silu, ["DequantizeLinear", *_float("Sigmoid", "Mul")]),
    "gelu": (
        lambda g, x: g.node("Gelu", x), lambda x, a, b: ORT.gelu(x, a, b, "none"), _float("Gelu")),
    "gelu tanh": (
        lambda g, x: g.node("Gelu", x, approximate="tanh"),
        lambda x, a, b: ORT.gelu(x, a, b, "tanh"), _float("Gelu")),
}  # fmt: skip


@SEEDS
@DTYPES
@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_value(name: str, dtype: str, seed: int, tmp_path: Path) -> None:
    build, ours, ops = UNARY[name]
    random = np.random.default_rng(seed)
    grid, output_grid = any_grid(random, dtype), any_grid(random, dtype)
    if name in ("sigmoid", "tanh", "hard sigmoid"):
        output_grid = any_grid(random, dtype, 1 / 128)
    q = every_integer(grid)
    graph = Qdq()
    y = graph.quantize(build(graph, graph.activation(q, grid)), output_grid)
    theirs, ran = graph.run(y, dtype, tmp_path)
    assert ran == ops
    assert torch.equal(ours(q, grid, output_grid), theirs)


@SEEDS
@DTYPES
def test_relu_becomes_the_limit_of_the_grid(dtype: str, seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    grid, output_grid = any_grid(random, dtype), any_grid(random, dtype)
    for at_limit in (True, False):
        low = output_grid.qmin
        zero_point = torch.tensor(low if at_limit else low + 3, dtype=torch.int32)
        output_grid = Grid(output_grid.scale, zero_point, dtype)
        q = every_integer(grid)
        graph = Qdq()
        y = graph.node("Relu", graph.activation(q, grid))
        theirs, ran = graph.run(graph.quantize(y, output_grid), dtype, tmp_path)
        assert ran == (FLOAT if at_limit else _float("Relu"))
        assert torch.equal(ORT.relu(q, grid, output_grid), theirs)


BINARY = {
    "Add": (ORT.add, ["QLinearAdd"]),
    "Mul": (ORT.mul, ["QLinearMul"]),
    "Sub": (ORT.sub, ["DequantizeLinear", *_float("Sub")]),
    "Div": (ORT.div, ["DequantizeLinear", *_float("Div")]),
}


@SEEDS
@DTYPES
@pytest.mark.parametrize("op", BINARY)
@pytest.mark.parametrize("broadcast", ["no", "rows", "columns", "scalar", "constant"])
def test_functions_of_two_values(
    op: str, broadcast: str, dtype: str, seed: int, tmp_path: Path
) -> None:
    """All 65536 pairs, the operand that is broadcast second."""
    ours, ops = BINARY[op]
    random = np.random.default_rng(seed)
    grid_a, grid_b = any_grid(random, dtype), any_grid(random, dtype)
    product = float(grid_a.scale * grid_b.scale) * random.uniform(4, 60)
    output_grid = any_grid(random, dtype, product if op == "Mul" else None)
    every = every_integer(grid_a)
    a, b = every.repeat(256, 1), every.reshape(256, 1)
    if op == "Div":
        b = torch.where(b == grid_b.zero_point, b ^ 1, b)
    if broadcast == "no":
        b = b.repeat(1, 256)
    elif broadcast == "columns":
        a, b = a.T.contiguous(), b.T.contiguous()
    elif broadcast == "scalar":
        b = b[int(random.integers(256))].reshape(())
    graph = Qdq()
    second = graph.parameter if broadcast == "constant" else graph.activation
    y = graph.node(op, graph.activation(a, grid_a), second(b, grid_b))
    theirs, ran = graph.run(graph.quantize(y, output_grid), dtype, tmp_path)
    assert ran == ops
    assert torch.equal(ours(a, grid_a, b, grid_b, output_grid), theirs)


# Scales and zero points on which another order of roundings, or one rounding more, shows.
HARD = [
    ("Add", 0.265625, 240, 0.239215687, 216, 0.25, 181),
    ("Add", 0.1171875, 147, 0.3125, 250, 0.270833343, 100),
    ("Add", 0.234375, 29, 0.421875, 11, 0.763888896, 113),
    ("Add", 0.1875, 210, 1.291666627, 161, 0.200000003, 112),
    ("Mul", 0.037500001, 186, 0.46875, 129, 0.984375, 156),
    ("Mul", 0.458333343, 169, 0.569444418, 99, 6.785879135, 153),
]


@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize(("op", "scale_a", "zero_a", "scale_b", "zero_b", "scale", "zero"), HARD)
def test_order_of_roundings(
    op: str, scale_a: float, zero_a: int, scale_b: float, zero_b: int,
    scale: float, zero: int, spread: bool, tmp_path: Path,
) -> None:  # fmt: skip
    ours, ops = BINARY[op]
    grid_a, grid_b = uint8_grid(scale_a, zero_a), uint8_grid(scale_b, zero_b)
    output_grid = uint8_grid(scale, zero)
    every = every_integer(grid_a)
    a, b = every.repeat(256, 1), every.reshape(256, 1).repeat(1, 256 if spread else 1)
    graph = Qdq()
    y = graph.node(op, graph.activation(a, grid_a), graph.activation(b, grid_b))
    theirs, ran = graph.run(graph.quantize(y, output_grid), "uint8", tmp_path)
    assert ran == ops
    assert torch.equal(ours(a, grid_a, b, grid_b, output_grid), theirs)
    if not spread:
        assert torch.equal(ours(b, grid_b, a, grid_a, output_grid), theirs)


@pytest.mark.parametrize(
    ("op", "scale", "zero"),
    [("Sigmoid", 0.028366172686219215, 182), ("Sigmoid", 0.019533803686499596, 152),
     ("Tanh", 0.07795447111129761, 53), ("Tanh", 0.012573303654789925, 248)],
)  # fmt: skip
def test_approximated_functions_where_they_round_apart(
    op: str, scale: float, zero: int, tmp_path: Path
) -> None:
    grid = uint8_grid(scale, zero)
    output_grid = uint8_grid(1 / 256, 0) if op == "Sigmoid" else uint8_grid(1 / 128, 128)
    ours, exact = (ORT.sigmoid, torch.sigmoid) if op == "Sigmoid" else (ORT.tanh, torch.tanh)
    q = every_integer(grid)
    graph = Qdq()
    y = graph.node(op, graph.activation(q, grid))
    theirs, _ = graph.run(graph.quantize(y, output_grid), "uint8", tmp_path)
    assert torch.equal(ours(q, grid, output_grid), theirs)
    assert not torch.equal(ORT.lookup(q, grid, output_grid, exact), theirs)


@SEEDS
@DTYPES
def test_quantize_and_dequantize(dtype: str, seed: int, tmp_path: Path) -> None:
    random = np.random.default_rng(seed)
    grid = any_grid(random, dtype)
    real = torch.from_numpy(np.round(random.normal(size=(3, 1000)) * 512) / 128).float()
    graph = Qdq()
    y = graph.quantize(graph.input(real, "float32"), grid)
    theirs, ran = graph.run(y, dtype, tmp_path)
    assert ran == ["QuantizeLinear"]
    assert torch.equal(ORT.quantize(real, grid), theirs)
    q = every_integer(grid)
    graph = Qdq()
    theirs, ran = graph.run(graph.activation(q, grid), "float32", tmp_path)
    assert ran == ["DequantizeLinear"]
    assert torch.equal(ORT.dequantize(q, grid), theirs)


@pytest.mark.parametrize(("separated", "merged"), [(False, True), (True, False)])
def test_a_requantize_with_one_reader_is_merged_away(
    separated: bool, merged: bool, tmp_path: Path
) -> None:
    """Q, DQ, Q, DQ become one pair on a third grid; an op between them prevents it."""
    first = Grid(torch.tensor(0.02), torch.tensor(100, dtype=torch.int32), "uint8")
    second = Grid(torch.tensor(0.03), torch.tensor(30, dtype=torch.int32), "uint8")
    real = torch.linspace(-4, 8, 256).reshape(1, 1, 16, 16)
    graph = Qdq()
    y = graph.quantize(graph.input(real, "float32"), first)
    y = graph.dequantize(y, first)
    if separated:
        y = graph.node("LeakyRelu", y, alpha=1.0)
    y = graph.dequantize(graph.quantize(y, second), second)
    theirs, ran = graph.run(y, "float32", tmp_path)
    ours = ORT.dequantize(ORT.requantize(ORT.quantize(real, first), first, second), second)
    assert torch.equal(ours, theirs) is not merged
    assert ("QLinearLeakyRelu" in ran) is separated
