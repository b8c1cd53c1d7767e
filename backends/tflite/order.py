"""Which values have their channels in block order, so that a pixel shuffle is one operator.

The permutation costs nothing where it moves into the weights of the convolution that makes the
deep side of a pixel shuffle, through ops that treat all channels alike; or, for a pixel unshuffle,
into the weights of the convolutions that read it. See `arrangement` for the order itself.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from fuseq import ops
from fuseq.program import Program

_ALIKE = frozenset(
    "relu clamp leaky_relu sigmoid tanh hardswish hardsigmoid silu gelu requantize".split()
)
_SUMS = frozenset("add sub mul".split())


def block_orders(program: Program) -> dict[fx.Node, int]:
    """Nodes whose stored channels are in block order, with the factor of their pixel shuffle.

    16-bit values are left out: DEPTH_TO_SPACE and SPACE_TO_DEPTH have no kernel for them.
    """
    found: dict[fx.Node, int] = {}
    for node in program.graph.nodes:
        name = ops.name_of(program, node)
        if name == "pixel_shuffle":
            factor: Any = node.kwargs["upscale_factor"]
            found |= dict.fromkeys(_makers(program, node.all_input_nodes[0]) or (), factor)
        elif name == "pixel_unshuffle":
            factor = node.kwargs["downscale_factor"]
            readers = all(_mixes_channels(program, user) for user in node.users)
            if readers and not is_wide(program, node):
                found[node] = factor
    return found


def _makers(program: Program, node: fx.Node) -> list[fx.Node] | None:
    """A value and those it is made of, back to convolutions; None if one cannot be reordered."""
    if len(node.users) != 1 or is_wide(program, node):
        return None
    if _mixes_channels(program, node):
        return [node]
    name = ops.name_of(program, node)
    if name not in _ALIKE and name not in _SUMS:
        return None
    found = [node]
    for operand in node.all_input_nodes:
        if program.shape(operand) == program.shape(node):
            makers = _makers(program, operand)
            if makers is None:
                return None
            found += makers
        elif program.shape(operand)[1:2] != (1,):  # one channel for all has no order
            return None
    return found


def _mixes_channels(program: Program, node: fx.Node) -> bool:
    layer = program.get(node) if node.op == "call_module" else None
    return isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.groups == 1


def is_wide(program: Program, node: fx.Node) -> bool:
    """Whether a value has integers of 16 bits."""
    table = program.quantization
    grid = table.grids.get(table.absorbed.get(node.name, node.name)) if table else None
    return grid is not None and grid.dtype == "int16"
