"""Where one convolution could stand: regions with one root and one exit.

Every path from the input to the exit passes through each dominator of the exit, so a dominator is
a root of everything between it and the exit. Larger regions contain the smaller ones: once a
region holds a boundary, or leaks, every larger one does. What the next larger region adds lies
between the old root and its dominator, whatever the exit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import networkx as nx
from torch import fx

from fuseq import ops
from fuseq.affine.operands import is_data
from fuseq.affine.operations import boundary
from fuseq.affine.refusal import Refusal, RefusedError
from fuseq.program import Program


class Fault(NamedTuple):
    """A rule that does not hold, and where.

    Attributes:
        node: where.
        error: the rule.
    """

    node: fx.Node
    error: RefusedError


@dataclass(frozen=True)
class Region:
    """Operations between two values.

    Attributes:
        root: the only value that is read from outside.
        exit: the only value that is read outside, unless the region leaks.
        nodes: from after the root up to the exit, in graph order.
        fault: a boundary or leak inside, which no region has that can be replaced.
    """

    root: fx.Node
    exit: fx.Node
    nodes: tuple[fx.Node, ...]
    fault: Fault | None

    def refused(self, program: Program, fault: Fault) -> Refusal:
        """Why this region is no convolution, told at one of its nodes."""
        return Refusal(
            code=fault.error.code,
            node=fault.node.name,
            source=program.source(fault.node),
            root=self.root.name,
            exit=self.exit.name,
            reason=fault.error.reason,
            fix=fault.error.fix,
        )


def dominators(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Immediate dominator of each tensor value that depends on the input.

    A value that depends on several inputs independently has none.
    """
    outside = "outside"
    flow: nx.DiGraph[fx.Node | str] = nx.DiGraph()
    flow.add_node(outside)
    for node in graph.nodes:
        if node.op == "placeholder":
            flow.add_edge(outside, node)
        elif is_data(node):
            flow.add_edges_from((n, node) for n in node.all_input_nodes if is_data(n))
    found = nx.immediate_dominators(flow, outside)
    return {
        node: above
        for node, above in found.items()
        if isinstance(node, fx.Node) and isinstance(above, fx.Node)
    }


class Regions:
    """Regions of a graph. What lies between a value and its dominator is looked for once.

    Attributes:
        order: position of each node in the graph.
        boundaries: why a node ends every region, or None.
    """

    def __init__(self, program: Program) -> None:
        """Take the graph as it is now; replacing a region changes nothing before its root."""
        self.order = {node: index for index, node in enumerate(program.graph.nodes)}
        self.boundaries = {node: boundary(program, node) for node in self.order}
        self._dominator = dominators(program.graph)
        self._segments: dict[fx.Node, tuple[fx.Node, ...]] = {}

    def exits(self) -> list[fx.Node]:
        """Nodes that can be the exit of a region, from the output backwards."""
        inside = (node for node, error in self.boundaries.items() if error is None)
        return [node for node in inside if node in self._dominator][::-1]

    def ending_at(self, exit: fx.Node) -> Iterator[Region]:
        """Regions that end at a node, smallest first; the last one may have a fault."""
        root, nodes, inside = exit, tuple[fx.Node, ...](), set[fx.Node]()
        while (parent := self._dominator.get(root)) is not None:
            segment = self._segment(parent, root)
            nodes = segment + nodes
            inside.update(segment)
            fault = self._fault(segment, inside, exit)
            yield Region(parent, exit, nodes, fault)
            if fault:
                return
            root = parent

    def _segment(self, root: fx.Node, exit: fx.Node) -> tuple[fx.Node, ...]:
        if exit not in self._segments:
            between = _between(root, exit)
            self._segments[exit] = tuple(sorted(between, key=self.order.__getitem__))
        return self._segments[exit]

    def _fault(
        self, segment: tuple[fx.Node, ...], inside: set[fx.Node], exit: fx.Node
    ) -> Fault | None:
        for node in reversed(segment):
            if error := self.boundaries[node]:
                return Fault(node, error)
        for node in reversed(segment):
            readers = (user for user in node.users if not _stays_inside(user, inside))
            reader = next(readers, None)
            if reader and node is not exit:
                return Fault(node, RefusedError("leak", f"`{reader.name}` reads a value inside"))
        return None


def _stays_inside(user: fx.Node, inside: Collection[fx.Node]) -> bool:
    """Whether a reader is inside, or computes a size that is read inside alone."""
    if user.target in ops.SHAPE_ARITHMETIC:
        return all(_stays_inside(reader, inside) for reader in user.users)
    return user in inside


def _between(root: fx.Node, exit: fx.Node) -> set[fx.Node]:
    """Values on a path from a root to an exit, without the root."""
    inside, waiting = {exit}, [exit]
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node is not root and node not in inside and is_data(node):
                inside.add(node)
                waiting.append(node)
    return inside
