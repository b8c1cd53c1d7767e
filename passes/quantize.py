"""Calibrate and choose every grid: from here on the program runs in integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import fuseq
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.quant.calibrate import calibrate
from fuseq.quant.profile import Profile
from fuseq.quant.solve import solve
from fuseq.quant.structure import find_structure
from fuseq.requirements import batch_norms_folded


@dataclass(frozen=True)
class FloatIslands:
    """Compute nodes that stay float in a quantized program.

    Attributes:
        islands: their names.
    """

    islands: tuple[str, ...]


@dataclass(frozen=True)
class Quantize(fuseq.Pass):
    """Quantize for a target.

    Attributes:
        observer: how ranges are measured: minmax, moving-average, percentile or mse.
        keep: names of nodes that stay float.
        profile: the target's rules.
        calibration: batches of inputs, seen once.
        progress: called with the number of batches seen.
    """

    name: ClassVar[str] = "quantize"
    promise: ClassVar[fuseq.Promise] = fuseq.NewFunction("rounds every value to a grid")
    requires: ClassVar[tuple[fuseq.Predicate, ...]] = (batch_norms_folded,)

    observer: str = "minmax"
    keep: tuple[str, ...] = ()
    profile: Profile | None = field(default=None, repr=False)
    calibration: Iterable[Any] | None = field(default=None, repr=False)
    progress: Callable[[int], None] | None = field(default=None, repr=False)

    def run(self, program: Program) -> int:
        """Set `program.quantization`; returns the number of quantized values.

        Raises:
            FuseqError: FQ012 without a target, FQ006 without data, and as `calibrate` raises.
        """
        if self.profile is None:
            raise FuseqError("FQ012", "quantize needs a target", fix="--backend onnx")
        if self.calibration is None:
            raise FuseqError(
                "FQ006", "quantize needs calibration data", fix="--calib DIR, or calibration_data()"
            )
        structure = find_structure(program, self.profile, frozenset(self.keep))
        observers = calibrate(program, structure, self.calibration, self.observer, self.progress)
        program.quantization = solve(program, self.profile, structure, observers)
        program.note(FloatIslands(structure.islands))
        return len(structure.group)
