"""`LevelSweep`: batches go through a graph in levels, so that a node can be edited by its input.

What a node is given depends on the nodes before it. Where those are edited by data too (statistics
of batch norms, rounded weights), they come first: nodes that no other waiting node feeds are looked
at over all batches, edited, and released; then those behind them. Each batch waits between levels
with the values that are still needed, so that nothing is computed twice; batches beyond
`KEPT_BYTES` start over at each level instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

KEPT_BYTES = 2**30
"""Values of waiting batches that may be kept between levels."""


class LevelSweep:
    """Runs every batch up to the nodes that still wait.

    Attributes:
        waiting: nodes that are not computed, nor is anything behind them; remove those that are
            done.
    """

    def __init__(
        self,
        interpreter: fx.Interpreter,
        waiting: Sequence[fx.Node],
        data: Sequence[tuple[Tensor, ...]],
    ) -> None:
        """Stand before the first level.

        Args:
            interpreter: computes nodes of its graph; its values have `nbytes`.
            waiting: nodes of that graph.
            data: inputs of each batch.
        """
        self.interpreter, self.data, self.waiting = interpreter, data, set(waiting)
        self._nodes = _leading_to(waiting, interpreter.graph)
        self._kept: dict[int, dict[fx.Node, Any]] = {}
        self._room = KEPT_BYTES

    def batches(self) -> Iterator[dict[fx.Node, Any]]:
        """Values of each batch in turn; those that waiting nodes read are among them."""
        for index, batch in enumerate(self.data):
            values = self._kept.pop(index, None)
            if values is None:
                values = {}
            else:
                self._room += _size(values)
            self._advance(batch, values)
            yield values
            if _size(values) <= self._room:
                self._room -= _size(values)
                self._kept[index] = values

    def _advance(self, batch: tuple[Tensor, ...], values: dict[fx.Node, Any]) -> None:
        """Compute what no waiting node holds up; forget what nobody will read any more."""
        self.interpreter.env, self.interpreter.args_iter = values, iter(batch)
        self.interpreter.extra_traceback = False
        with torch.no_grad():
            for node in self._nodes:
                if node in values or node in self.waiting:
                    continue
                if all(operand in values for operand in node.all_input_nodes):
                    values[node] = self.interpreter.run_node(node)
                    self._forget(node, values)

    def _forget(self, node: fx.Node, values: dict[fx.Node, Any]) -> None:
        """Replace a value by None once all its readers have run: it counts as computed."""
        for operand in node.all_input_nodes:
            readers = [user for user in operand.users if user in self._nodes]
            if all(user in values for user in readers):
                values[operand] = None


def levels(nodes: Sequence[fx.Node], graph: fx.Graph) -> list[list[fx.Node]]:
    """Nodes by the length of the longest chain of them before, each level in graph order.

    Args:
        nodes: some nodes of the graph, in its order.
        graph: as said.
    """
    chosen = set(nodes)
    depth: dict[fx.Node, int] = {}
    for node in graph.nodes:
        before = max((depth[n] for n in node.all_input_nodes), default=0)
        depth[node] = before + (node in chosen)
    found: dict[int, list[fx.Node]] = {}
    for node in nodes:
        found.setdefault(depth[node], []).append(node)
    return [found[d] for d in sorted(found)]


def _leading_to(chosen: Sequence[fx.Node], graph: fx.Graph) -> dict[fx.Node, None]:
    """Nodes that some chosen node depends on, and the chosen, in graph order; all inputs too."""
    needed = set(chosen)
    for node in reversed(graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return {n: None for n in graph.nodes if n in needed or n.op == "placeholder"}


def _size(values: dict[fx.Node, Any]) -> int:
    return sum(getattr(value, "nbytes", 0) for value in values.values())
