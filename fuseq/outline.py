"""The outline of a program: what stands where in its graph, without a weight.

It is what a drawing of the graph needs, and small enough to be kept in a bundle beside the files:
names, ops, shapes, costs and source lines, as plain values.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from fuseq import ops
from fuseq.macs import macs
from fuseq.program import Program
from fuseq.text import attributes_text


@dataclass(frozen=True)
class OutlineNode:
    """One value of a program.

    Attributes:
        name: of the node.
        op: its canonical name.
        attributes: those of its op, as text forms show them.
        operands: names of the values it reads.
        shape: of its value at the captured size.
        dtype: of its value in the float program.
        source: `file:line`, or the empty string.
        scope: path of the module of the user's that ran it, or the empty string.
        module: path of the module it calls, or the empty string.
        macs: multiply-accumulates at the captured size.
        parameters: numbers of its module.
    """

    name: str
    op: str
    attributes: str
    operands: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    source: str
    scope: str
    module: str
    macs: int
    parameters: int


def outline(program: Program) -> tuple[OutlineNode, ...]:
    """The values of a program in graph order; sizes and constants are left out."""
    shown = [node for node in program.graph.nodes if _is_shown(program, node)]
    names = {node.name for node in shown}
    return tuple(
        OutlineNode(
            name=node.name,
            op=ops.name_of(program, node),
            attributes=attributes_text(program, node),
            operands=tuple(n.name for n in node.all_input_nodes if n.name in names),
            shape=program.shape(node),
            dtype=str(node.meta["dtype"]).removeprefix("torch."),
            source=program.source(node),
            scope=node.meta.get("scope") or "",
            module=str(node.target) if node.op == "call_module" else "",
            macs=macs(program, node),
            parameters=_parameters(program, node),
        )
        for node in shown
    )


def _is_shown(program: Program, node: fx.Node) -> bool:
    return "shape" in node.meta and ops.name_of(program, node) not in ("constant", "output")


def _parameters(program: Program, node: fx.Node) -> int:
    held = list(program.get(node).parameters()) if node.op == "call_module" else []
    constants = [program.constant(n) for n in node.all_input_nodes if n.op == "get_attr"]
    return sum(p.numel() for p in (*held, *constants) if isinstance(p, nn.Parameter))
