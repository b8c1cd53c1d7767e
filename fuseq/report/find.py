"""What a report shows of a bundle, found from its files alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fuseq.bundle import Bundle
from fuseq.equivalence.sides import tensors
from fuseq.errors import FuseqError
from fuseq.lineage import read_lineage
from fuseq.report.measured_values import measured_values
from fuseq.report.page import Findings
from fuseq.report.runs import recorded_inputs, run
from fuseq.report.verdict import judge

_NEEDED = ("lineage", "golden", "sample", "program")
"""Files that must be as they were written; a changed one of the others is a failed check."""


def find(
    bundle: Bundle,
    inputs: tuple[np.ndarray, ...] | None = None,
    progress: Callable[[str, int], None] = lambda stage, done: None,
) -> Findings:
    """Measure what a report shows of a bundle; no code of the user's is imported.

    Args:
        bundle: read from disk.
        inputs: float32 arrays to run it on, images with their channels first; by default those
            that the bundle keeps.
        progress: called as stages advance.

    Raises:
        FuseqError: FQ013 for a damaged bundle, or one of an older version; FQ005 for inputs that do
            not fit.
    """
    bundle.require_intact(_NEEDED)
    stored = bundle.file("lineage")
    if stored is None:
        raise FuseqError(
            "FQ013",
            f"bundle '{bundle.path}' has no lineage.json",
            why="it was written by an older version",
            fix="lower the model again",
        )
    lineage, program = read_lineage(stored), bundle.lowered_program()
    chosen, what = (inputs, "the given inputs") if inputs else recorded_inputs(bundle, program)
    progress("run", 0)
    outputs = run(bundle, program, chosen)
    progress("measure", 0)
    table = program.quantization if program else None
    values = measured_values(program, tensors(chosen)) if program and table else []
    progress("check", 0)
    return Findings(
        bundle=bundle,
        model=type(program.origin.module).__name__ if program else "",
        lineage=lineage,
        verdict=judge(bundle, outputs),
        inputs=chosen,
        inputs_are=what,
        outputs=outputs,
        values=values,
        absorbed=table.absorbed if table else {},
    )
