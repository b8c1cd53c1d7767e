"""The two families of HTP, which compute some activations behind a layer differently.

Measured on the emulator, from each op's own operands: v73 and newer compute a leaky ReLU or a PReLU
behind a layer on the layer's sums and pass over the quantizer between them (at most
one step from that in 4 % of the values). v68 and v69 round in between, exactly as the file says. No
one file is right for both, so they get programs of their own. Otherwise the families differ in how
they round: v68 and v69 are one step off in about twice as many values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fuseq import ops
from fuseq.backend import Refusal
from fuseq.backends.qnn.chips import CHIPS, Chip
from fuseq.program import Program
from fuseq.quant.profile import Profile

ON_SUMS = frozenset({"leaky_relu", "prelu"})
STANDING = (CHIPS["sm8450"], CHIPS["sm8750"])
"""A chip to stand for each family."""


def computes_on_sums(chip: Chip) -> bool:
    """Whether a chip computes the activations of `ON_SUMS` on a layer's sums."""
    return chip.htp >= 73


def profile_for(chips: Sequence[Chip], profile: Profile) -> Profile:
    """The rules for chips of one family; where there are chips of both, those given.

    Args:
        chips: to compile for.
        profile: of v73 and newer.
    """
    if not chips or any(map(computes_on_sums, chips)):
        return profile
    absorbed = {op: by for op, by in profile.absorbed.items() if op not in ON_SUMS}
    return replace(profile, absorbed=absorbed)


def family_refusals(program: Program, chips: Sequence[Chip]) -> list[Refusal]:
    """Activations that a program computes on sums and one of the chips does not."""
    rounding = [chip.name for chip in chips if not computes_on_sums(chip)]
    absorbed = program.quantization.absorbed.values() if program.quantization else ()
    return [
        Refusal(
            node.name,
            program.source(node),
            f"{ops.name_of(program, node)} on the sums of the layer before, which "
            f"{', '.join(rounding)} rounds first",
            "lower once for the chips with HTP v68 and v69, and once for the newer ones",
        )
        for node in program.graph.nodes
        if rounding and node.name in absorbed and ops.name_of(program, node) in ON_SUMS
    ]


def of_each_family(program: Program, chips: Sequence[Chip]) -> list[Chip]:
    """Chips on which to hold the ops: the first of each family, or the one that stands for it.

    A family that is not asked for is left out where it computes something else.
    """
    apart = any(ops.name_of(program, node) in ON_SUMS for node in program.graph.nodes)
    found = []
    for standing in STANDING:
        kind = computes_on_sums(standing)
        wanted = [chip for chip in chips if computes_on_sums(chip) == kind]
        found += wanted[:1] or [standing][apart:]
    return found
