"""How HTP wants some ops spelled in QDQ ONNX, where not as everybody.

Every tensor between two ops needs a quantizer, constants included: an op with one float operand is
computed in float, or refused.

HTP computes a leaky ReLU or a PReLU behind a layer on the layer's sums and passes
over the quantizer between them, whatever its scale; the compiler in front of it refuses a file
without one. So there is one, `<layer>.ignored`, that nothing reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fuseq import ops
from fuseq.program import Program
from fuseq.qdq.float_ops import Rule, norm_parameters, slopes_of
from fuseq.qdq.graph import Graph
from fuseq.qdq.sized_ops import resize
from fuseq.quant.grid import Grid, affine_grid, slope_grid
from fuseq.quant.structure import bounds

IGNORED = ".ignored."
"""What the names of tensors that HTP does not have contain."""

DERIVED = (".slopes", ".ones", ".zeros", ".blocks")
"""How names of parameters end that follow from the model and are in no table."""

CENTERED = ".centered"
"""How names of weights end that have zeros around them in the file and not in the model."""

_CLIPS = ("relu", "clamp")

SMALLEST_SLOPE = 1 / 64
"""Flatter than this, a negative part is on the ignored grid as far as it goes."""


def ignored_grid(program: Program, node: fx.Node) -> Grid | None:
    """Grid between a layer and the activation on its sums: the inputs that its outputs come from.

    Between such an activation and a requantize: what both can hold.

    Args:
        program: quantized.
        node: the layer, or the activation.

    Returns:
        None where the file has no quantizer there.
    """
    table = program.quantization
    if table is None or node.name not in table.absorbed:
        return None
    (activation,) = node.users
    output = table.grids[table.absorbed[node.name]]
    ends = output.dequantize(torch.tensor([output.qmin, output.qmax]))
    low, high = float(ends[0]), float(ends[1])
    first, last = bounds(node)
    if ops.name_of(program, activation) == "requantize" and ops.name_of(program, node) in _CLIPS:
        return affine_grid(max(low, first), min(high, last), output.dtype)
    slope = _smallest_slope(program, activation)
    if slope is None:
        return None
    return affine_grid(min(low, -high) / slope, high, output.dtype)


def _smallest_slope(program: Program, activation: fx.Node) -> float | None:
    """Of the negative part; None for what a grid's ends do."""
    name = ops.name_of(program, activation)
    if name == "leaky_relu":
        slope: Any = activation.kwargs["negative_slope"]
        return max(abs(float(slope)), SMALLEST_SLOPE)
    if name == "prelu":
        return max(float(np.abs(slopes_of(program, activation)).min()), SMALLEST_SLOPE)
    return None


def _prelu(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    slopes = torch.from_numpy(slopes_of(program, node))
    constant = _constant(graph, f"{node.name}.slopes", slopes, slope_grid(slopes, "uint8"))
    return graph.node("PRelu", [*inputs, constant], node.name)


def _instance_norm(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    """Weights of one and biases of zero: `legalize` made a convolution of others."""
    norm = program.get(node)
    assert isinstance(norm, nn.InstanceNorm2d)
    assert program.quantization is not None
    weight, bias = (torch.from_numpy(values) for values in norm_parameters(norm))
    one = Grid(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), "uint8")
    source = program.quantization.grids[node.all_input_nodes[0].name]
    zero = Grid(source.scale, one.zero_point, "int32")
    parameters = [
        _constant(graph, f"{node.name}.ones", weight, one),
        _constant(graph, f"{node.name}.zeros", bias, zero),
    ]
    return graph.node("InstanceNormalization", [*inputs, *parameters], node.name, epsilon=norm.eps)


def _pixel_unshuffle(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    """Blocks before channels, on the same grid; then channels before blocks, as torch has them."""
    assert program.quantization is not None
    grid = program.quantization.grids[node.name]
    factor: Any = node.kwargs["downscale_factor"]
    channels = program.shape(node)[1] // factor**2
    order = np.arange(channels * factor**2).reshape(factor**2, channels).T.reshape(-1)
    blocks = graph.node("SpaceToDepth", inputs, f"{node.name}.blocks", blocksize=factor)
    integers = graph.node("QuantizeLinear", [blocks, *graph.grid(grid)], f"{blocks}.integers")
    real = graph.dequantize(blocks, integers, grid)
    return graph.node("Gather", [real, graph.constant(order.astype(np.int64))], node.name, axis=1)


def _interpolate(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    """To sizes that are constants, where the program has sizes."""
    factors: Any = node.kwargs["scale_factor"]
    if factors is None:
        return resize(graph, node, inputs[0], ["", "", graph.integers(*program.shape(node))])
    scales = graph.constant(np.array([1, 1, *factors], dtype=np.float32))
    return resize(graph, node, inputs[0], ["", scales])


def _constant(graph: Graph, name: str, real: torch.Tensor, grid: Grid) -> str:
    integers = grid.quantize(real).numpy().astype(grid.dtype)
    return graph.dequantize(name, graph.initializer(name, integers), grid)


SPELLINGS: dict[str, Rule] = {
    "prelu": _prelu,
    "instance_norm": _instance_norm,
    "pixel_unshuffle": _pixel_unshuffle,
    "interpolate": _interpolate,
    "interpolate_nearest": _interpolate,
}
