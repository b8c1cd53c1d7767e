"""Calibrate and choose every grid: from here on the program runs in integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import fuseq
from fuseq.errors import FuseqError
from fuseq.plugins import did_you_mean
from fuseq.program import Program
from fuseq.quant.calibrate import calibrate
from fuseq.quant.profile import Profile
from fuseq.quant.solve import solve
from fuseq.quant.structure import FloatIslands, Structure, find_structure
from fuseq.requirements import batch_norms_folded


@dataclass(frozen=True)
class Quantize(fuseq.Pass):
    """Quantize for a target.

    Attributes:
        observer: how ranges are measured: minmax, moving-average, percentile or mse.
        keep: names of nodes that stay float.
        wide: names of nodes whose values have 16 bits; what shares a grid with them has too.
        activation: dtype of activations, of those the target has; none for the target's first.
        per_channel: whether weights have one scale per output channel; none for what the target
            has.
        profile: the target's rules.
        calibration: batches of inputs, seen once.
        progress: called with the number of batches seen.
    """

    name: ClassVar[str] = "quantize"
    promise: ClassVar[fuseq.Promise] = fuseq.NewFunction("rounds every value to a grid")
    requires: ClassVar[tuple[fuseq.Predicate, ...]] = (batch_norms_folded,)

    observer: str = "minmax"
    keep: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    activation: str | None = None
    per_channel: bool | None = None
    profile: Profile | None = field(default=None, repr=False)
    calibration: Iterable[Any] | None = field(default=None, repr=False)
    progress: Callable[[int], None] | None = field(default=None, repr=False)

    def run(self, program: Program) -> int:
        """Set `program.quantization`; returns the number of quantized values.

        Raises:
            FuseqError: FQ012 without a target or for what it does not have, FQ006 without data,
                FQ007 for an unknown node, FQ401 for a wide node without a grid, and as `calibrate`
                raises.
        """
        if self.profile is None:
            raise FuseqError("FQ012", "quantize needs a target", fix="--backend onnx")
        if self.calibration is None:
            raise FuseqError(
                "FQ006", "quantize needs calibration data", fix="--calib DIR, or calibration_data()"
            )
        profile = self.profile.with_choices(self.activation, self.per_channel)
        _require_nodes(program, (*self.keep, *self.wide))
        structure = find_structure(program, profile, frozenset(self.keep), frozenset(self.wide))
        _require_wide(program, profile, structure, self.wide)
        observers = calibrate(program, structure, self.calibration, self.observer, self.progress)
        program.quantization = solve(program, profile, structure, observers)
        program.note(FloatIslands(structure.islands))
        return len(structure.group)


def _require_nodes(program: Program, names: tuple[str, ...]) -> None:
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
    program: Program, profile: Profile, structure: Structure, names: tuple[str, ...]
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
