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
    """Read each size from the earliest value that has it and stays as it is, in place.

    A size that is read from a value inside a region would keep the value alive. No region replaces
    what another kind of op gives; if nothing of that kind has the size, it is read where it was.
    """
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    for node in order:
        if node.target is ops.sym_size:
            value, dim = node.args
            found, waiting = {value}, [value]
            while waiting:
                new = _same_size(program, waiting.pop(), dim) - found
                found |= new
                waiting += new
            staying = [value for value in found if boundary(program, value)]
            node.args = (min(staying, key=order.__getitem__, default=value), dim)


def _same_size(program: Program, value: fx.Node, dim: int) -> set[fx.Node]:
    """Operands of an affine op that have the op's size along a dimension, for every input."""
    if boundary(program, value):
        return set()
    name, shape = ops.name_of(program, value), program.shape(value)
    data = {n for n in operands(value) if program.shape(n)[dim] == shape[dim]}
    if dim == (1 if len(shape) == 4 else len(shape) - 1):
        return set()
    if dim == 0 or name in ("linear", "batch_norm", "batch_norm1d"):
        return data
    if name in ("add", "sub", "mul", "div"):
        return {n for n in data if program.shape(n) == shape}
    if name == "conv2d":
        layer = program.get(value)
        assert isinstance(layer, nn.Conv2d)
        window = zip(layer.kernel_size, layer.dilation, layer.padding, strict=True)
        kernel, dilation, padding = list(window)[dim - 2]
        assert isinstance(padding, int)
        same = layer.stride[dim - 2] == 1 and dilation * (kernel - 1) == 2 * padding
        return data if same else set()
    return set()
