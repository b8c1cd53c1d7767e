"""What keeps a region apart without need: values computed twice, sizes read inside it."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from fuseq import ops
from fuseq.affine.operations import boundary, operands
from fuseq.program import Program


def merge_equal(program: Program) -> None:
    """Compute once what is computed twice: equal functions of the same operands, in place."""
    first: dict[Any, fx.Node] = {}
    for node in list(program.graph.nodes):
        if node.op != "call_function" or ops.name_of(program, node).startswith("foreign"):
            continue  # a foreign op may be random
        same = first.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if same is not node:
            node.replace_all_uses_with(same)
            program.graph.erase_node(node)


def read_sizes_early(program: Program) -> None:
    """Read each size from the earliest value that has it, in place.

    A size that is read from a value inside a region would keep the value alive.
    """
    for node in program.graph.nodes:
        if node.target is ops.sym_size:
            value, dim = node.args
            while (earlier := _same_size(program, value, dim)) is not None:
                value = earlier
            node.args = (value, dim)


def _same_size(program: Program, value: fx.Node, dim: int) -> fx.Node | None:
    """Operand of an affine op that has the op's size along a dimension, for every input."""
    if boundary(program, value):
        return None
    name, shape = ops.name_of(program, value), program.shape(value)
    data = [n for n in operands(value) if program.shape(n)[dim] == shape[dim]]
    if not data or dim == (1 if len(shape) == 4 else len(shape) - 1):
        return None
    if dim == 0 or name in ("linear", "batch_norm", "batch_norm1d"):
        return data[0]
    if name in ("add", "sub", "mul", "div"):
        return next((n for n in data if program.shape(n) == shape), None)
    if name == "conv2d":
        layer = program.get(value)
        assert isinstance(layer, nn.Conv2d)
        window = zip(layer.kernel_size, layer.dilation, layer.padding, strict=True)
        kernel, dilation, padding = list(window)[dim - 2]
        assert isinstance(padding, int)
        same = layer.stride[dim - 2] == 1 and dilation * (kernel - 1) == 2 * padding
        return data[0] if same else None
    return None
