"""What a region costs before and after: fusing everything that can be fused is a loss.

    price = MACs + element cost * (elements read and written) + operation cost * operations

at the captured size. Composing an expanding with a projecting 1x1, or a depthwise window with a
1x1, is exact and multiplies the MACs; the price keeps them apart. Weights are not traffic: they
are read once a frame.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch import fx

from fuseq import ops
from fuseq.affine.emit import Plan
from fuseq.affine.operands import is_data
from fuseq.affine.operations import WEIGHTED
from fuseq.macs import macs
from fuseq.program import Program

_CHANNELWISE = ("batch_norm", "batch_norm1d", "add", "sub", "mul", "div")


@dataclass(frozen=True)
class CostModel:
    """Prices in units of one multiply-accumulate.

    The defaults are low on purpose: they pay for a pass over the map that is saved, never for a
    convolution that grows by more than that.

    Attributes:
        element: reading or writing one activation.
        operation: running one more operation.
    """

    element: float = 4.0
    operation: float = 1000.0

    def nodes(self, program: Program, nodes: Iterable[fx.Node]) -> dict[fx.Node, float]:
        """Price of each node as it is; nothing for what folds into a convolution anyway.

        Args:
            program: that holds the nodes.
            nodes: in graph order, with all that such a fold could reach.
        """
        prices: dict[fx.Node, float] = {}
        absorbed: set[fx.Node] = set()
        for node in nodes:
            if _folds(program, node, absorbed):
                absorbed.add(node)
                prices[node] = 0.0
                continue
            elements = math.prod(program.shape(node)) + sum(
                math.prod(n.meta.get("shape", ())) for n in node.all_input_nodes if is_data(n)
            )
            prices[node] = macs(program, node) + self.element * elements + self.operation
        return prices

    def plan(self, plan: Plan, root: tuple[int, ...]) -> float:
        """Price of a plan, given the shape of the root."""
        return (
            plan.macs(root) + self.element * plan.elements(root) + self.operation * plan.operations
        )


def _folds(program: Program, node: fx.Node, absorbed: Collection[fx.Node]) -> bool:
    """Whether a node is channelwise and directly follows a convolution only it reads."""
    data = [n for n in node.all_input_nodes if is_data(n)]
    if len(data) != 1 or ops.name_of(program, node) not in _CHANNELWISE:
        return False
    before = data[0]
    after_layer = before in absorbed or ops.name_of(program, before) in WEIGHTED
    return after_layer and len(before.users) == 1
