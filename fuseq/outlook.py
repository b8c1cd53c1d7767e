"""What a backend would make of a program, told without data: what it refuses, what stays float."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from fuseq import ops
from fuseq.api import run_passes
from fuseq.backend import Backend, Refusal
from fuseq.pass_spec import parse_passes
from fuseq.program import Program
from fuseq.quant.profile import Profile
from fuseq.quant.structure import find_structure


@dataclass(frozen=True)
class FloatNode:
    """An operation that the target computes in float.

    Attributes:
        node: its name.
        op: its canonical name.
        source: `file:line`, or the empty string.
        reason: one sentence.
    """

    node: str
    op: str
    source: str
    reason: str


@dataclass(frozen=True)
class Outlook:
    """What a backend would say of a program.

    Attributes:
        backend: its name.
        refusals: why it cannot be lowered; empty if it can.
        unmet: what the passes of its pipeline require and do not find, one sentence each.
        floats: operations that would stay float in an int8 file.
        integers: number of operations that would compute in integers.
    """

    backend: str
    refusals: tuple[Refusal, ...]
    unmet: tuple[str, ...]
    floats: tuple[FloatNode, ...]
    integers: int


def outlook(program: Program, backend: Backend) -> Outlook:
    """Run a backend's pipeline up to where it needs data, and ask it and its profile.

    Args:
        program: captured, or already fused.
        backend: with its options.

    Raises:
        FuseqError: as its passes raise.
    """
    steps = parse_passes(backend.pipeline, profile=backend.profile)
    without_data = [step for step in steps if not hasattr(step, "calibration")]
    legal = run_passes(without_data, program, None, prove=False)
    answers = [
        (step, predicate(legal))
        for step in steps
        if step not in without_data
        for predicate in step.requires
    ]
    unmet = tuple(f"{step.name}: {reason}" for step, reason in answers if reason)
    structure = find_structure(legal, backend.profile)
    floats = tuple(
        FloatNode(
            node.name,
            ops.name_of(legal, node),
            legal.source(node),
            _why_float(legal, backend.profile, node),
        )
        for node in legal.graph.nodes
        if node.name in structure.islands
    )
    refusals = tuple(backend.refusals(legal))
    return Outlook(backend.name, refusals, unmet, floats, len(structure.integer))


def _why_float(program: Program, profile: Profile, node: fx.Node) -> str:
    op = ops.name_of(program, node)
    if profile.computes(op):
        return "an operand is a mask or a size, which has no grid"
    if op in profile.same_grid:
        return "it moves values that nothing beside it computes in integers"
    return f"no integer kernel for {op.removeprefix('foreign:')}"
