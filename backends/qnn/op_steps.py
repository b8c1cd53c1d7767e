"""Every op of a run on the HTP against our executor, each from the HTP's own operands.

From end to end, a fifth of all integers differ, because each rounding moves the operands of what
follows. Started from the operands that the HTP had, an op differs by one step near a tie, or not at
all; an op that is computed wrongly differs by many, whatever stands behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fuseq import ops
from fuseq.backends.qnn.tolerances import allowed_steps
from fuseq.equivalence.compare import steps_between
from fuseq.equivalence.result import Check, Divergence
from fuseq.program import Program
from fuseq.quant.executor import execute


@dataclass(frozen=True)
class OpSteps:
    """How far one value is from ours.

    Attributes:
        node: name of the value.
        op: what computed it; of an activation on a layer's sums, the layer.
        dtype: of its grid.
        steps: absolute differences in steps of its grid.
    """

    node: str
    op: str
    dtype: str
    steps: np.ndarray


def op_steps(
    program: Program, shown: Mapping[str, np.ndarray], inputs: tuple[Tensor, ...]
) -> list[OpSteps]:
    """Differences of every value that was shown, in execution order.

    Args:
        program: quantized.
        shown: integers that the HTP computed, by value name.
        inputs: float32, which they were computed from.
    """
    assert program.quantization is not None
    given = {name: torch.from_numpy(q.astype(np.int32)) for name, q in shown.items()}
    ours = execute(with_parts_of_concats(program), inputs, given=given).integers
    layers: dict[str, str] = {}
    for layer, value in program.quantization.absorbed.items():
        layers.setdefault(value, layer)
    nodes = {node.name: node for node in program.graph.nodes}
    return [
        OpSteps(
            name,
            ops.name_of(program, nodes[layers.get(name, name)]),
            program.quantization.grids[name].dtype,
            steps_between(ours[name].numpy(), shown[name]),
        )
        for name in ours
        if name in shown
    ]


def with_parts_of_concats(program: Program) -> Program:
    """A copy that computes what a concat reads on the concat's grid, as the HTP does.

    For other readers the HTP computes it again, on a grid of its own.

    Args:
        program: quantized.
    """
    table = program.quantization
    assert table is not None
    if "requantize" not in table.profile.absorbed:
        return program
    copy = program.clone()
    absorbed, integers = dict(table.absorbed), dict(table.integers)
    grids, integer = dict(table.grids), set(table.integer)
    for edge in list(copy.graph.nodes):
        source = edge.all_input_nodes[0] if edge.all_input_nodes else edge
        computed = table.profile.computes(ops.name_of(copy, source)) and source.name in integer
        if ops.name_of(copy, edge) != "requantize" or source.name in absorbed or not computed:
            continue
        chain = [source]
        while table.absorbed.get(chain[0].all_input_nodes[0].name) == source.name:
            chain.insert(0, chain[0].all_input_nodes[0])
        twin = source
        for node, before in zip(chain, [None, *chain], strict=False):
            with copy.graph.inserting_before(edge):
                last, twin = twin, copy.graph.node_copy(node)
            if before is not None:
                twin.replace_input_with(before, last)
            absorbed[twin.name] = edge.name
            integer.add(twin.name)
            key = f"{node.name}.operand"
            if key in integers:
                integers[f"{twin.name}.operand"] = integers[key]
                grids[f"{twin.name}.operand"] = grids[key]
        edge.replace_input_with(source, twin)
    copy.module.recompile()
    copy.quantization = replace(
        table, grids=grids, integers=integers, absorbed=absorbed, integer=frozenset(integer)
    )
    return copy


def op_check(
    id: str,
    pair: str,
    program: Program,
    shown: Mapping[str, np.ndarray],
    inputs: tuple[Tensor, ...],
    note: str = "",
) -> tuple[Check, Divergence | None]:
    """Hold every op to the steps that its kind may differ by.

    Args:
        id: name of the check.
        pair: what is compared, for people.
        program: quantized.
        shown: integers that the HTP computed, by value name.
        inputs: float32, which they were computed from.
        note: remark to keep with the result.

    Returns:
        The check, with the largest difference of those that break their limit, or of all; and the
        first value in execution order that breaks its own.
    """
    found = op_steps(program, shown, inputs)
    largest = {each.node: int(each.steps.max(initial=0)) for each in found}
    allowed = {each.node: allowed_steps(each.op, each.dtype) for each in found}
    breaking = [each.node for each in found if largest[each.node] > allowed[each.node]]
    worst = max(breaking or largest, key=lambda name: largest[name], default="")
    metrics = {
        "differing": sum(int(np.count_nonzero(each.steps)) for each in found),
        "total": sum(each.steps.size for each in found),
        "max_lsb": largest.get(worst, 0),
    }
    gate = {"max_lsb": allowed.get(worst, 1)}
    check = Check(id, pair, "parity", metrics, gate, bool(found) and not breaking, note)
    if not breaking:
        return check, None
    node = next(node for node in program.graph.nodes if node.name == breaking[0])
    return check, Divergence(node.name, program.source(node))
