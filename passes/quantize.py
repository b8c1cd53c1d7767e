"""Calibrate and choose every grid: from here on the program runs in integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import fuseq
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.quant.measured import measure
from fuseq.quant.profile import Profile
from fuseq.quant.sensitivity import Form, opt_outs, sensitivities
from fuseq.quant.solve import solve
from fuseq.quant.structure import FloatIslands, Structure
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
        worst: how many parts, of those that cost most when quantized alone, do not get 8 bits.
        worst_as: what they get instead: float, or int16, which only values can have.
        profile: the target's rules.
        calibration: batches of inputs, seen once; three times with `worst`.
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
    worst: int = 0
    worst_as: Form = "int16"
    profile: Profile | None = field(default=None, repr=False)
    calibration: Iterable[Any] | None = field(default=None, repr=False)
    progress: Callable[[int], None] | None = field(default=None, repr=False)

    def run(self, program: Program) -> int:
        """Set `program.quantization`; returns the number of quantized values.

        Raises:
            FuseqError: FQ012 without a target or for what it does not have, FQ006 without data,
                and as `measure` raises.
        """
        structure = self._solve(program, self.keep, self.wide)
        if self.worst:
            assert self.calibration is not None
            ranking = sensitivities(program, self.calibration, self.progress)
            keep, wide = opt_outs(program, ranking, self.worst, self.worst_as)
            for part in ranking:
                program.note(part)
            structure = self._solve(program, (*self.keep, *keep), (*self.wide, *wide))
        program.note(FloatIslands(structure.islands))
        return len(structure.group)

    def _solve(self, program: Program, keep: tuple[str, ...], wide: tuple[str, ...]) -> Structure:
        if self.profile is None:
            raise FuseqError("FQ012", "quantize needs a target", fix="--backend onnx")
        if self.calibration is None:
            raise FuseqError(
                "FQ006", "quantize needs calibration data", fix="--calib DIR, or calibration_data()"
            )
        measured = measure(
            program,
            self.profile,
            self.calibration,
            observer=self.observer,
            keep=keep,
            wide=wide,
            activation=self.activation,
            per_channel=self.per_channel,
            progress=self.progress,
        )
        structure = measured.structure
        program.quantization = solve(program, measured.profile, structure, measured.observers)
        return structure
