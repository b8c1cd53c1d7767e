r"""How many steps of a grid two float32 sums of the same terms may lie apart.

A runtime adds in an order of its own, with float32 partial sums; our executor adds exactly. Each of
the n operations multiplies a partial sum by 1 + delta, |delta| <= 2^-24, the deltas independent and
with mean zero (Higham & Mary, SIAM J. Sci. Comput. 41(5), 2019, Model 2.1), so their standard
deviation is u = 2^-24 / sqrt(3) at most. No partial sum exceeds A = sum |x w| + |b|, so that of the
error of a sum is below u A sqrt(n). Where terms cancel, A is many times the sum, and the error many
steps of a grid that is made for the sum:

    1 + 8 u A sqrt(n) / s_y

One step is that of a tie; 8 standard deviations leave a Gaussian tail of 1e-15.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fuseq import ops
from fuseq.program import Program
from fuseq.rounding import UNIT

DEVIATIONS = 8

CONVERSIONS = 4
"""Roundings of a term besides its additions: both operands to reals, their product, the result."""


def allowed_steps(
    program: Program, values: Mapping[str, Tensor], differences: Mapping[str, int]
) -> dict[str, int]:
    """Steps by which values that are computed in float may differ.

    Args:
        program: quantized.
        values: integers that each op starts from, by value name.
        differences: largest difference of each value that is computed in float, by value name.

    Returns:
        For each of them 1, or what the rounding of its sums explains where it differs by more.
    """
    assert program.quantization is not None
    producers = {value: node for node, value in program.quantization.absorbed.items()}
    nodes = {node.name: node for node in program.graph.nodes}
    return {
        name: 1 if step <= 1 else _steps(program, nodes[producers.get(name, name)], values)
        for name, step in differences.items()
    }


def _steps(program: Program, node: fx.Node, values: Mapping[str, Tensor]) -> int:
    assert program.quantization is not None
    table = program.quantization
    sources = node.all_input_nodes
    if node.name not in table.integer or not all(source.name in values for source in sources):
        return 1
    sizes = [table.grids[s.name].dequantize(values[s.name]).double().abs() for s in sources]
    count, largest = _terms(program, node, sizes)
    output = table.grids[table.absorbed.get(node.name, node.name)]
    error = DEVIATIONS * UNIT * largest * math.sqrt(count + CONVERSIONS)
    return 1 + math.floor(error / float(output.scale))


def _terms(program: Program, node: fx.Node, sizes: list[Tensor]) -> tuple[int, float]:
    """Most terms that a sum of a node has, and the largest sum of their absolute values."""
    name = ops.name_of(program, node)
    if name in ("conv2d", "conv_transpose2d", "linear"):
        layer = _absolute(program, node)
        weights = layer.weight.numel() // layer.weight.shape[name == "conv_transpose2d"]
        return weights + 1, float(layer(sizes[0]).max())
    if name == "matmul":
        return sizes[0].shape[-1], float((sizes[0] @ sizes[1]).max())
    if name == "mean":
        dims: Any = node.kwargs["dim"]
        return math.prod(sizes[0].shape[d] for d in dims), float(sizes[0].mean(dims).max())
    return 0, 0.0


@torch.no_grad()
def _absolute(program: Program, node: fx.Node) -> Any:
    """A layer with the absolute values of its frozen weight and bias, in float64."""
    assert program.quantization is not None
    table, layer = program.quantization, copy.deepcopy(program.get(node)).double()
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    for name, parameter in layer.named_parameters():
        key = f"{node.target}.{name}"
        parameter.copy_(table.grids[key].dequantize(table.integers[key]).abs())
        parameter.requires_grad_(False)
    return layer
