"""Steps between 8 and 16 bits, for targets whose ops take and give values of one dtype.

The dtype of a result decides: each of its operands that has another is requantized on that edge,
and keeps its own grid for its other readers.
"""

from __future__ import annotations

from torch import fx

from fuseq import ops
from fuseq.program import Program
from fuseq.quant.profile import Profile
from fuseq.quant.structure import Structure, find_structure, operands


def with_steps(
    program: Program, profile: Profile, keep: frozenset[str], wide: frozenset[str]
) -> Structure:
    """Structure of a program that has a requantize wherever two dtypes meet.

    Args:
        program: legalized; gets the requantizes.
        profile: the target's rules.
        keep: names of nodes that stay float.
        wide: names of nodes whose values have 16 bits.
    """
    structure = find_structure(program, profile, keep, wide, _stepped(program, profile))
    edges = _mixed(program, structure)
    for node, operand in edges:
        is_step = ops.name_of(program, operand) == "requantize"  # of an earlier choice of `wide`
        step = operand if is_step else _step(program, node, operand)
        if _dtype(structure, node) == profile.wide:
            wide |= {step.name}
    if not edges:
        return structure
    program.module.recompile()
    return find_structure(program, profile, keep, wide, _stepped(program, profile))


def _stepped(program: Program, profile: Profile) -> frozenset[str]:
    """Values that a step reads: they are integers before it, too."""
    steps = program.graph.find_nodes(op="call_function", target=ops.requantize)
    return frozenset(
        operand.name
        for step in steps
        for operand in step.all_input_nodes
        if not any(ops.name_of(program, user) in profile.tied_inputs for user in step.users)
    )


def _step(program: Program, node: fx.Node, operand: fx.Node) -> fx.Node:
    with program.graph.inserting_before(node):
        step = program.graph.call_function(ops.requantize, (operand,))
    step.meta = dict(operand.meta)
    node.replace_input_with(operand, step)
    return step


def _mixed(program: Program, structure: Structure) -> list[tuple[fx.Node, fx.Node]]:
    """Ops of integers with their operands of another dtype."""
    return [
        (node, operand)
        for node in program.graph.nodes
        if node.name in structure.integer and ops.name_of(program, node) != "requantize"
        for operand in dict.fromkeys(operands(node))
        if _dtype(structure, operand) not in (None, _dtype(structure, node))
    ]


def _dtype(structure: Structure, node: fx.Node) -> str | None:
    """Dtype of a value, or of the one that an activation makes of it; None without a grid."""
    group = structure.group.get(structure.absorbed.get(node.name, node.name))
    return None if group is None else structure.dtypes[group]
