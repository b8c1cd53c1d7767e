"""Give a program the structure the target will run, before any range is measured.

What is trained and calibrated must be what is deployed: a requantize stands on every input edge of
an op that ties its inputs to one grid (merging the grids instead costs several dB, because a
narrow value that others also read is spread over a wide grid), and ops the target has no kernel
for are spelled with ops it has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import fx

import fuseq
from fuseq import ops
from fuseq.program import Program
from fuseq.quant.profile import Profile


@dataclass(frozen=True)
class Legalize(fuseq.Pass):
    """Requantize at tied edges; decompose what the target lacks.

    Attributes:
        profile: the target's rules; without them nothing is changed.
    """

    name: ClassVar[str] = "legalize"
    promise: ClassVar[fuseq.Promise] = fuseq.SameFunction()
    profile: Profile | None = field(default=None, repr=False)

    def run(self, program: Program) -> int:
        """Edit the program; returns the number of nodes added or replaced."""
        if self.profile is None:
            return 0
        nodes = list(program.graph.nodes)
        names = {node: ops.name_of(program, node) for node in nodes}
        replaced = [
            _DECOMPOSITIONS[names[node]](program, node)
            for node in nodes
            if names[node] in self.profile.decompose
        ]
        requantized = [
            _requantize(program, node, operand)
            for node in nodes
            if names[node] in self.profile.tied_inputs
            for operand in dict.fromkeys(node.all_input_nodes)
            if names[operand] not in ("requantize", "constant")
        ]
        return len(replaced) + len(requantized)


def _requantize(program: Program, node: fx.Node, operand: fx.Node) -> None:
    with program.graph.inserting_before(node):
        edge = program.graph.call_function(ops.requantize, (operand,))
    edge.meta = dict(operand.meta)
    node.replace_input_with(operand, edge)


def _silu(program: Program, node: fx.Node) -> None:
    """`silu(x) = x * sigmoid(x)`."""
    with program.graph.inserting_before(node):
        gate = program.graph.call_function(torch.sigmoid, (node.args[0],))
        product = program.graph.call_function(torch.mul, (node.args[0], gate))
    gate.meta, product.meta = dict(node.meta), dict(node.meta)
    node.replace_all_uses_with(product)


_DECOMPOSITIONS: dict[str, Callable[[Program, fx.Node], None]] = {"silu": _silu}
