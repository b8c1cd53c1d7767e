"""Where one convolution could stand: regions with one root and one exit.

Every path from the input to the exit passes through each dominator of the exit, so a dominator is
a root of everything between it and the exit. Larger regions contain the smaller ones: once a
region holds a boundary, or leaks, every larger one does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import networkx as nx
from torch import fx

from fuseq import ops
from fuseq.affine.form import LinForm
from fuseq.affine.operands import is_data
from fuseq.affine.operations import boundary, form_of, operands
from fuseq.affine.polyphase import Form, PolyphaseForm
from fuseq.affine.refusal import Refusal, RefusedError
from fuseq.program import Program


@dataclass(frozen=True)
class Region:
    """Affine operations between two values.

    Attributes:
        root: the only value that is read from outside.
        exit: the only value that is read outside.
        nodes: from after the root up to the exit, in graph order.
    """

    root: fx.Node
    exit: fx.Node
    nodes: tuple[fx.Node, ...]

    def refused(self, program: Program, node: fx.Node, error: RefusedError) -> Refusal:
        """Why this region is no convolution, told at one of its nodes."""
        return Refusal(
            code=error.code,
            node=node.name,
            source=program.source(node),
            root=self.root.name,
            exit=self.exit.name,
            reason=error.reason,
            fix=error.fix,
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


def candidates(
    program: Program,
    exit: fx.Node,
    dominator: Mapping[fx.Node, fx.Node],
    order: Mapping[fx.Node, int],
) -> Iterator[Region | Refusal]:
    """Regions that end at a node, smallest first; a last refusal says what stops them.

    Args:
        program: that holds the node.
        exit: a node that is no boundary.
        dominator: from `dominators`.
        order: position of each node in the graph.
    """
    root = exit
    while (parent := dominator.get(root)) is not None:
        root = parent
        region, crossed = _between(root, exit, order)
        for node in reversed(region.nodes):
            error = boundary(program, node)
            if error is None and node in crossed:
                error = RefusedError("leak", f"`{crossed[node].name}` reads a value inside")
            if error:
                yield region.refused(program, node, error)
                return
        if len(root.meta.get("shape", ())) == len(exit.meta["shape"]):
            yield region


def read(program: Program, region: Region, size: tuple[int, int] | None) -> Form | Refusal:
    """Form of a region's exit, or why it has none.

    Args:
        program: that holds the region.
        region: without boundaries.
        size: height and width of the root if the form need hold at that size only.
    """
    needed = {region.exit}
    for node in reversed(region.nodes):
        if node in needed:
            needed.update(operands(node))
    tokens = any(ops.name_of(program, node) == "linear" for node in needed)
    root = program.shape(region.root)
    channels = root[-1] if tokens else root[1]
    forms: dict[fx.Node, Form] = {region.root: LinForm.root(channels, size, tokens=tokens)}
    for node in region.nodes:
        if node not in needed:
            continue
        try:
            forms[node] = form_of(program, node, forms)
            if node is region.exit:
                _require_shape(forms[node], root, program.shape(node))
        except RefusedError as error:
            return region.refused(program, _culprit(forms, node, error), error)
    return forms[region.exit]


def _culprit(forms: Mapping[fx.Node, Form], node: fx.Node, error: RefusedError) -> fx.Node:
    """The node that made a margin which was never cropped, else the node that refuses."""
    for earlier, form in forms.items():
        margin = (form.coarse if isinstance(form, PolyphaseForm) else form).margin
        if margin and margin.error is error:
            return earlier
    return node


def _require_shape(form: Form, root: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Broadcasting can change a shape in ways no form has."""
    form.require_exact()
    if form.shape(root) != shape:
        raise RefusedError("layout", f"an operand is repeated to shape {shape}")


def _between(
    root: fx.Node, exit: fx.Node, order: Mapping[fx.Node, int]
) -> tuple[Region, dict[fx.Node, fx.Node]]:
    """The region of a root and an exit, and for each leaking node one outside reader."""
    inside, waiting = {exit}, [exit]
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node is not root and node not in inside and is_data(node):
                inside.add(node)
                waiting.append(node)
    crossed = {node: user for node in inside - {exit} for user in node.users if user not in inside}
    return Region(root, exit, tuple(sorted(inside, key=order.__getitem__))), crossed
