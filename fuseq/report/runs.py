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
from fuseq.verify import takes


@dataclass(frozen=True)
class Outputs:
    """Outputs on one input, as reals, channels first.

    Attributes:
        real: of the float program, or of the shipped file where the bundle holds no program.
        shipped: of the int8 file, or of our executor where its runtime is missing or the file
            takes another size only; None for a float bundle.
        by: what computed `shipped`.
    """

    real: tuple[np.ndarray, ...]
    shipped: tuple[np.ndarray, ...] | None
    by: str = ""


def recorded_inputs(bundle: Bundle, program: Program | None) -> tuple[tuple[np.ndarray, ...], str]:
    """The inputs a bundle keeps, and what they are: a calibration input, or the example inputs.

    Args:
        bundle: read from disk.
        program: its own; a calibration input of another size is no input of it.

    Raises:
        FuseqError: FQ013 for a bundle that keeps none.
    """
    sample, golden = bundle.file("sample"), bundle.file("golden")
    if sample is not None and program is not None:
        arrays = golden_inputs(bundle, sample)
        if _takes(program, arrays):
            return arrays, "a calibration input"
    if golden is None:
        raise FuseqError("FQ013", f"bundle '{bundle.path}' keeps no inputs", fix="lower again")
    return golden_inputs(bundle, golden), "the example inputs"


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
        other_size = error.code == "FQ005" and program is not None and _takes(program, inputs)
        if program is None or not (error.exit_code == TOOL_MISSING or other_size):
            raise
        shipped, by = _of_program(program, inputs), "our executor of the same integers"
    if program is None:
        return Outputs(shipped, None)
    real = _of_program(float_form(program), inputs)
    return Outputs(real, shipped if program.quantization else None, by)


def _takes(program: Program, inputs: tuple[np.ndarray, ...]) -> bool:
    return len(inputs) == len(program.example_inputs) and takes(program, [x.shape for x in inputs])


def _of_program(program: Program, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    with torch.no_grad():
        leaves = pytree.tree_leaves(program(*tensors(inputs)))
    return tuple(leaf.numpy() for leaf in leaves)
