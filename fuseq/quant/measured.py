"""What quantization starts from: the target's rules as chosen, the structure, observed ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fuseq.errors import FuseqError
from fuseq.plugins import did_you_mean
from fuseq.program import Program
from fuseq.quant.calibrate import calibrate
from fuseq.quant.observer import Observer
from fuseq.quant.one_dtype import with_steps
from fuseq.quant.profile import Profile
from fuseq.quant.structure import Structure, find_structure


@dataclass(frozen=True)
class Measured:
    """A program's quantization before any grid is chosen.

    Attributes:
        profile: the target's rules, with the user's choices.
        structure: which values share a grid.
        observers: one for each group, after calibration.
    """

    profile: Profile
    structure: Structure
    observers: Mapping[str, Observer]


def measure(
    program: Program,
    profile: Profile,
    data: Iterable[Any],
    *,
    observer: str = "minmax",
    keep: Sequence[str] = (),
    wide: Sequence[str] = (),
    activation: str | None = None,
    per_channel: bool | None = None,
    progress: Callable[[int], None] | None = None,
) -> Measured:
    """Find the structure of a legalized program and calibrate it.

    Args:
        program: float program; gets requantizes where a target's ops cannot mix dtypes.
        profile: the target's rules.
        data: batches of inputs, seen once.
        observer: minmax, moving-average, percentile or mse.
        keep: names of nodes that stay float.
        wide: names of nodes whose values have 16 bits; what shares a grid with them has too.
        activation: dtype of activations; None for the target's first.
        per_channel: whether weights have one scale per output channel; None for what the target
            has.
        progress: called with the number of batches seen.

    Raises:
        FuseqError: FQ012 for what the target does not have, FQ007 for an unknown node, FQ401 for a
            wide node without a grid, and as `calibrate` raises.
    """
    profile = profile.with_choices(activation, per_channel)
    _require_nodes(program, (*keep, *wide))
    find = with_steps if profile.one_dtype else find_structure
    structure = find(program, profile, frozenset(keep), frozenset(wide))
    _require_wide(program, profile, structure, wide)
    return Measured(profile, structure, calibrate(program, structure, data, observer, progress))


def _require_nodes(program: Program, names: Sequence[str]) -> None:
    known = [node.name for node in program.graph.nodes if node.op not in ("get_attr", "output")]
    for name in names:
        if name not in known:
            raise FuseqError(
                "FQ007",
                f"the program to quantize has no node '{name}'",
                why=f"its nodes are {', '.join(known[:40])}{', ...' if known[40:] else ''}",
                fix=did_you_mean(name, known) or "one of these names",
            )


def _require_wide(
    program: Program, profile: Profile, structure: Structure, names: Sequence[str]
) -> None:
    if names and not profile.wide:
        raise FuseqError(
            "FQ012",
            f"target '{profile.name}' has no activations of 16 bits",
            fix=f'keep=("{names[0]}",) leaves a node in float',
        )
    for node in program.graph.nodes:
        if node.name in names and node.name not in {*structure.group, *structure.absorbed}:
            raise FuseqError(
                "FQ401",
                f"{program.where(node)} has no grid that could have 16 bits",
                fix="leave it out of `wide`: it is computed in float, and read in float",
            )
