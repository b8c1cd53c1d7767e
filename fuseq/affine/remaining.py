"""What is left in a fused program, and why: one refusal for each batch norm, and the other gains.

A batch norm can fold into the convolution before or after it, so several regions may hold it. The
smallest one that could be read says most; that its neighbour is not affine says least.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from torch import fx

from fuseq import ops
from fuseq.affine.operations import boundary
from fuseq.affine.refusal import Refusal, RefusedError
from fuseq.affine.region import Fault, Region
from fuseq.affine.search import NORMS, Missed
from fuseq.program import Program


def explained(program: Program, missed: Sequence[Missed]) -> tuple[Refusal, ...]:
    """Why convolutions and batch norms stay apart, in graph order.

    Args:
        program: in which nothing more is fused.
        missed: regions that were looked at and left.

    Returns:
        One refusal for each batch norm, told at the norm, and one for each other node and code.
    """
    norms = {node for node in program.graph.nodes if ops.name_of(program, node) in NORMS}
    holding: dict[fx.Node, list[Missed]] = defaultdict(list)
    for miss in missed:
        for node in miss.region.nodes if _readable(miss) else (miss.region.exit,):
            holding[node].append(miss)
    telling = {norm: min(holding[norm], key=_vagueness) for norm in norms if norm in holding}
    told = [Missed(miss.region, Fault(norm, miss.fault.error)) for norm, miss in telling.items()]
    told += [_alone(program, norm) for norm in norms if norm not in telling]
    spent = {id(miss) for miss in telling.values()}
    others = (
        m for m in missed if _readable(m) and id(m) not in spent and m.fault.node not in norms
    )
    first: dict[tuple[fx.Node, str], Missed] = {}
    for miss in (*told, *others):
        first.setdefault((miss.fault.node, miss.fault.error.code), miss)
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    left = sorted(first.values(), key=lambda miss: order[miss.fault.node])
    return tuple(miss.region.refused(program, miss.fault) for miss in left)


def _readable(miss: Missed) -> bool:
    return miss.fault.error.code != "nonlinear"


def _vagueness(miss: Missed) -> tuple[bool, int]:
    return (not _readable(miss), len(miss.region.nodes))


def _alone(program: Program, norm: fx.Node) -> Missed:
    """Why a norm that no region told of is left."""
    error = boundary(program, norm) or RefusedError(
        "cost", "no convolution can take it up, and one of its own would cost as much"
    )
    return Missed(Region(norm.all_input_nodes[0], norm, (norm,), None), Fault(norm, error))
