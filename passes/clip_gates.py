"""`clip-gates`: what goes into a saturating function is cut where the function is flat.

    |tanh(x) - tanh(clamp(x, -4, 4))|       <= 1 - tanh(4)     = 6.7e-4
    |sigmoid(x) - sigmoid(clamp(x, -8, 8))| <= 1 - sigmoid(8)  = 3.4e-4
    hardsigmoid(x) = hardsigmoid(clamp(x, -3, 3))

A grid of 256 values over the whole range of a convolution spends most of them where the result no
longer changes. A clamp behind a convolution costs nothing in integers: it is computed on the
accumulator, and the end of the grid cuts by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

import fuseq
from fuseq import ops
from fuseq.program import Program
from fuseq.requirements import not_equalized, not_legalized

FLAT = {"tanh": 4.0, "sigmoid": 8.0, "hardsigmoid": 3.0}
"""Where each function is cut."""


@dataclass(frozen=True)
class ClipGates(fuseq.Pass):
    """Clamp what goes into tanh, sigmoid and hardsigmoid to where they are not flat.

    The bound on a single value is that of the formulas above, relative to a range of 1. The promise
    is about the outputs of the network, which add such errors up: it allows for 30 of the largest.
    """

    name: ClassVar[str] = "clip-gates"
    promise: ClassVar[fuseq.Promise] = fuseq.Approximates(max_rel=0.02)
    requires: ClassVar[tuple[fuseq.Predicate, ...]] = (not_legalized, not_equalized)

    def run(self, program: Program) -> int:
        """Edit the program; returns the number of clamps put in."""
        values = [
            value
            for node in program.graph.nodes
            if ops.name_of(program, node) in FLAT
            for value in node.all_input_nodes
            if len(value.users) == 1 and ops.name_of(program, value) != "clamp"
        ]
        for value in values:
            _clip(program, value, FLAT[ops.name_of(program, next(iter(value.users)))])
        return len(values)


def _clip(program: Program, value: fx.Node, limit: float) -> None:
    with program.graph.inserting_after(value):
        clamp = program.graph.call_function(torch.clamp, (value,), {"min": -limit, "max": limit})
    clamp.meta = dict(value.meta)
    value.replace_all_uses_with(clamp, lambda user: user is not clamp)
