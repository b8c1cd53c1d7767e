"""What several passes ask of the program they are given: predicates for `Pass.requires`."""

from __future__ import annotations

from fuseq import ops
from fuseq.program import Program


def batch_norms_folded(program: Program) -> str | None:
    """Every batch norm has become part of a convolution or stands behind no integer op."""
    left = [
        n
        for n in program.graph.nodes
        if ops.name_of(program, n) == "batch_norm"
        and any(ops.name_of(program, p) == "conv2d" for p in n.all_input_nodes)
        and len(n.all_input_nodes[0].users) == 1
    ]
    return f"{len(left)} are left, first {program.where(left[0])}" if left else None


def not_legalized(program: Program) -> str | None:
    """The program still has the structure of the model, not yet that of a target."""
    if program.quantization is not None:
        return "it is quantized, and its integers are frozen"
    edges = program.graph.find_nodes(op="call_function", target=ops.requantize)
    return f"{program.where(edges[0])} stands for a target's grid" if edges else None


def not_equalized(program: Program) -> str | None:
    """Channels have the ranges that the model gave them."""
    ran = any(record.name.partition("{")[0] == "equalize" for record in program.history)
    return "`equalize` made ranges equal that are no longer what it saw" if ran else None


def quantized(program: Program) -> str | None:
    """Every grid is chosen and every weight is an integer."""
    return "no pass chose its grids" if program.quantization is None else None
