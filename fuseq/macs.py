"""Multiply-accumulates (MACs) of a node: how many numbers it multiplies or sums.

A convolution multiplies each weight once for each output position, a transposed one once for each
input position, and a linear layer once for each row. A pool sums its window, and a norm or a
product is one step for each number. What only moves, adds, compares or looks up values counts as
zero: the field counts convolutions and linear layers, and so do we where nothing else multiplies.
"""

from __future__ import annotations

import math

from torch import fx, nn

from fuseq import ops
from fuseq.program import Program

_NORMS = ("batch_norm", "batch_norm1d", "instance_norm", "group_norm", "layer_norm")


def macs(program: Program, node: fx.Node) -> int:
    """Multiply-accumulates of one node at the captured size, the batch included."""
    name = ops.name_of(program, node)
    if name in ("conv2d", "conv_transpose2d", "linear"):
        module = program.get(node)
        assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
        return _positions(program, node, name) * module.weight.numel()
    if name in ("mul", "div", *_NORMS):
        return math.prod(program.shape(node))
    if name == "matmul":
        return math.prod(program.shape(node)) * program.shape(node.all_input_nodes[0])[-1]
    if name == "avg_pool":
        kernel = node.kwargs["kernel_size"]
        assert isinstance(kernel, tuple)
        return math.prod(program.shape(node)) * math.prod(kernel)
    if name in ("mean", "adaptive_avg_pool"):
        return math.prod(program.shape(node.all_input_nodes[0]))
    return 0


def total_macs(program: Program) -> int:
    """Multiply-accumulates of a program at its captured size."""
    return sum(macs(program, node) for node in program.graph.nodes)


def _positions(program: Program, node: fx.Node, name: str) -> int:
    """How often a layer uses each of its weights."""
    if name == "linear":
        return math.prod(program.shape(node)[:-1])
    read = node.all_input_nodes[0] if name == "conv_transpose2d" else node
    batch, _, height, width = program.shape(read)
    return batch * height * width
