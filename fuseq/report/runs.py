"""What a bundle is run on for its report, and what comes out: in float, and of the shipped file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils import _pytree as pytree

from fuseq.bundle import Bundle
from fuseq.equivalence.batches import require_fit
from fuseq.equivalence.sides import float_form, golden_inputs, ran, side_of, tensors
from fuseq.errors import TOOL_MISSING, FuseqError
from fuseq.program import Program


@dataclass(frozen=True)
class Outputs:
    """Outputs on one input, as reals, channels first.

    Attributes:
        real: of the float program, or of the shipped file where the bundle holds no program.
        shipped: of the int8 file, or of our executor where its runtime is missing; None for a
            float bundle.
        by: what computed `shipped`.
    """

    real: tuple[np.ndarray, ...]
    shipped: tuple[np.ndarray, ...] | None
    by: str = ""


def recorded_inputs(bundle: Bundle) -> tuple[tuple[np.ndarray, ...], str]:
    """The inputs a bundle keeps, and what they are: a calibration input, or the example inputs.

    Raises:
        FuseqError: FQ013 for a bundle that keeps none.
    """
    sample, golden = bundle.file("sample"), bundle.file("golden")
    file = sample or golden
    if file is None:
        raise FuseqError("FQ013", f"bundle '{bundle.path}' keeps no inputs", fix="lower again")
    return golden_inputs(bundle, file), "a calibration input" if sample else "the example inputs"


def run(bundle: Bundle, program: Program | None, inputs: tuple[np.ndarray, ...]) -> Outputs:
    """Run the float program and the shipped file.

    Raises:
        FuseqError: FQ005 for inputs that do not fit, FQ013 for a bundle without a file to run.
    """
    file = bundle.file("int8") or bundle.file("float")
    if file is None:
        raise FuseqError("FQ013", f"bundle '{bundle.path}' lists no file to run", fix="lower again")
    try:
        side = side_of(file)
        require_fit(side, inputs)
        shipped, by = tuple(ran(side, side.run, inputs)), side.name
    except FuseqError as error:
        if error.exit_code != TOOL_MISSING or program is None:
            raise
        shipped, by = _of_program(program, inputs), "the integer executor"
    if program is None:
        return Outputs(shipped, None)
    real = _of_program(float_form(program), inputs)
    return Outputs(real, shipped if program.quantization else None, by)


def _of_program(program: Program, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    with torch.no_grad():
        leaves = pytree.tree_leaves(program(*tensors(inputs)))
    return tuple(leaf.numpy() for leaf in leaves)
