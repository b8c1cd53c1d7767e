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
from fuseq.quant.solve import solve
from fuseq.quant.structure import FloatIslands
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
                and as `measure` raises.
        """
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
            keep=self.keep,
            wide=self.wide,
            activation=self.activation,
            per_channel=self.per_channel,
            progress=self.progress,
        )
        structure = measured.structure
        program.quantization = solve(program, measured.profile, structure, measured.observers)
        program.note(FloatIslands(structure.islands))
        return len(structure.group)
