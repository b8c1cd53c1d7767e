"""Memory of a program: of its values at the captured size, each with its own, and of its clones."""

from __future__ import annotations

import gc
import math

from torch import fx

from fuseq.program import Program

HEAVY = 2**24
"""Bytes of weights from which clones are worth a search for them."""


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


def free_clones(program: Program) -> None:
    """Free the memory of clones of a program that nobody holds any more, if they are heavy.

    Graphs hold themselves in cycles, which Python looks for by the number of objects, and a program
    of ten large tensors has few.
    """
    if weight_bytes(program) >= HEAVY:
        gc.collect()
