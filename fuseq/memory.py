"""Memory of a program's values at the captured size, each with memory of its own."""

from __future__ import annotations

import math

from torch import fx

from fuseq.program import Program


def value_bytes(program: Program, node: fx.Node) -> int:
    """Bytes of a node's value; zero for weights and for what is no tensor."""
    if node.op in ("get_attr", "output") or "shape" not in node.meta:
        return 0
    return math.prod(program.shape(node)) * int(node.meta["dtype"].itemsize)


def largest_value(program: Program) -> fx.Node:
    """The node whose value takes the most memory; the first of several."""
    nodes: list[fx.Node] = list(program.graph.nodes)
    return max(nodes, key=lambda node: value_bytes(program, node))


def peak_bytes(program: Program) -> int:
    """Most bytes of values that are alive at once.

    Nodes run in graph order; a value lives until its last reader is done. A runtime that computes
    in place, or shares memory between a value and a view of it, needs less.
    """
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    last = {node: max(map(order.__getitem__, node.users), default=i) for node, i in order.items()}
    ending: dict[int, int] = {}
    alive = peak = 0
    for node, index in order.items():
        size = value_bytes(program, node)
        ending[last[node]] = ending.get(last[node], 0) + size
        alive += size
        peak = max(peak, alive)
        alive -= ending.pop(index, 0)
    return peak


def weight_bytes(program: Program) -> int:
    """Bytes of all parameters and buffers, such as the statistics of batch norms."""
    held = (*program.module.parameters(), *program.module.buffers())
    return sum(tensor.numel() * tensor.itemsize for tensor in held)
