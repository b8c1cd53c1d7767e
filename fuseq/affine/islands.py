"""Affine islands: what fusion leaves between nonlinear operations, and why it stays apart.

An island is a connected set of affine operations around a weighted layer or a batch norm, unless
it is one weighted layer alone: that is what fusion is for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import networkx as nx
from torch import fx

from fuseq import ops
from fuseq.affine.operations import WEIGHTED, boundary, operands
from fuseq.affine.refusal import Refusal
from fuseq.program import Program

_CORES = (*WEIGHTED, "batch_norm", "batch_norm1d")


@dataclass(frozen=True)
class Island:
    """Affine operations that stayed apart.

    Attributes:
        nodes: their names, in graph order.
        refusals: why they are no single layer, as far as the search says.
    """

    nodes: tuple[str, ...]
    refusals: tuple[Refusal, ...]


def islands(program: Program, refusals: Iterable[Refusal]) -> list[Island]:
    """Islands of a fused program, in graph order.

    Args:
        program: after `fuse-affine`.
        refusals: that it left.
    """
    refused = list(refusals)
    affine = [
        node
        for node in program.graph.nodes
        if node.op in ("call_module", "call_function") and not boundary(program, node)
    ]
    connected: nx.Graph[fx.Node] = nx.Graph()
    connected.add_nodes_from(affine)
    inside = set(affine)
    connected.add_edges_from((n, node) for node in affine for n in operands(node) if n in inside)
    found = []
    for island in nx.connected_components(connected):
        kinds = [ops.name_of(program, node) for node in island]
        alone = len(kinds) == 1 and kinds[0] in WEIGHTED
        if alone or not any(kind in _CORES for kind in kinds):
            continue
        names = tuple(node.name for node in affine if node in island)
        why = tuple(r for r in refused if r.node in names or r.exit in names)
        found.append(Island(names, why))
    return found
