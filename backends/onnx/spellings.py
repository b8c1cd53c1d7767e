"""Ops that ONNX Runtime's CPU computes well between grids only if they are spelled otherwise.

Its InstanceNormalization adds floats in an order that depends on the machine. Between two grids
the statistics are therefore sums of the input's integers q, in float64, which is exact
in every order while the sums are below 2**53 (10**11 pixels). With count = height * width:

    mean     = sum(q) / count
    variance = sum(q^2) / count - mean^2                 so far in float64, from here in float32
    factor   = sign(variance) * weight / sqrt(variance * s^2 + eps)
    offset   = (z - mean) * s * factor + bias
    y        = x * factor + offset                       x = s * (q - z)

All but the sums is one correctly rounded operation after another, so it gives the same bits
everywhere; `OnnxRuntime.instance_norm` does the same steps. The variance of a constant map is
exactly zero, and so is the sign: the map gives the bias, where x and offset would otherwise leave
their rounding, times 1 / sqrt(eps).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto
from torch import fx, nn

from fuseq.program import Program
from fuseq.qdq.float_ops import FLOAT_OPS, Rule, norm_parameters
from fuseq.qdq.graph import Graph


def _instance_norm(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    """Instance normalization with exact statistics."""
    norm = program.get(node)
    assert isinstance(norm, nn.InstanceNorm2d)
    assert program.quantization is not None
    if node.name not in program.quantization.integer:
        return FLOAT_OPS["instance_norm"](graph, program, node, inputs)
    real, grid = inputs[0], program.quantization.grids[node.all_input_nodes[0].name]
    integers = graph.integers_of(real)
    weight, bias = (
        graph.initializer(f"{node.target}.{name}", values.reshape(-1, 1, 1))
        for name, values in zip(("weight", "bias"), norm_parameters(norm), strict=True)
    )
    scale, zero_point = np.float32(grid.scale), np.float64(grid.zero_point)
    spatial = graph.integers(2, 3)

    def step(name: str, op: str, *inputs: str | np.generic, **attributes: Any) -> str:
        names = [x if isinstance(x, str) else graph.constant(x) for x in inputs]
        return graph.node(op, names, f"{node.name}.{name}", **attributes)

    sizes = step("sizes", "Shape", integers, start=2, end=4)
    pixels = step("pixels", "ReduceProd", sizes, keepdims=0)
    count = step("count", "Cast", pixels, to=TensorProto.DOUBLE)
    q = step("integers", "Cast", integers, to=TensorProto.DOUBLE)
    mean = step("mean", "Div", step("sum", "ReduceSum", q, spatial), count)
    square = step("square", "Div", step("sum_square", "ReduceSumSquare", q, spatial), count)
    spread = step("spread", "Sub", square, step("mean_square", "Mul", mean, mean))
    distance = step("distance", "Sub", zero_point, mean)

    variance = step("variance", "Cast", spread, to=TensorProto.FLOAT)
    real_variance = step("real_variance", "Mul", variance, scale * scale)
    stable = step("stable", "Add", real_variance, np.float32(norm.eps))
    signed = step("signed", "Mul", step("sign", "Sign", variance), weight)
    factor = step("factor", "Div", signed, step("deviation", "Sqrt", stable))
    centre = step("centre", "Cast", distance, to=TensorProto.FLOAT)
    shift = step("shift", "Mul", step("real_centre", "Mul", centre, scale), factor)
    offset = step("offset", "Add", shift, bias)
    return graph.node("Add", [step("scaled", "Mul", real, factor), offset], node.name)


def _softmax(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    """Between two quantizers the runtime would take its integer kernel for a Softmax.

    That kernel overflows to zero where one or two inputs share an axis, and rounds the reciprocal
    of the output's scale down. It knows no LogSoftmax.
    """
    axis = node.kwargs["dim"]
    logarithm = graph.node("LogSoftmax", inputs, f"{node.name}.logarithm", axis=axis)
    return graph.node("Exp", [logarithm], node.name)


SPELLINGS: dict[str, Rule] = {"instance_norm": _instance_norm, "softmax": _softmax}
