"""A program at the size of a patch: what the emulator can run in a second.

The emulator takes minutes for a frame. A network of convolutions is the same function at every
size, borders included, so its ops are held to account on 64x64 pixels; the frame is compiled, not
run.
"""

from __future__ import annotations

import torch

from fuseq import shapes, verify
from fuseq.program import Program

SIDE = 64


def at_patch(program: Program) -> Program:
    """A copy of a program whose images are 64x64, or the program itself.

    It is the program itself where images are no larger, or where it takes its own size only.

    Args:
        program: at a fixed size.
    """
    patches = tuple(x[..., :SIDE, :SIDE] if x.dim() == 4 else x for x in program.example_inputs)
    sizes = [tuple(x.shape) for x in patches]
    if sizes == [tuple(x.shape) for x in program.example_inputs]:
        return program
    if not verify.takes(program, sizes):
        return program
    small = program.clone()
    small.example_inputs = tuple(x.clone(memory_format=torch.contiguous_format) for x in patches)
    shapes.propagate(small)
    return small
