"""Capture for large images: recorded at a small size, with the shapes of the large one.

Capture runs the model several times to see that the recording is right. Where the recording holds
for every image size, a small image shows that as well as a large one, and takes no minutes.
"""

from __future__ import annotations

from torch import Tensor, nn

from fuseq import shapes
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.tracing import capture

_LARGE, _PERIOD = 384, 128
"""Rows or columns from which an image is large. Small ones keep the remainder by the period, so
that whatever divides the large size divides the small one too."""


def capture_shapes(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Program:
    """A program with the shapes of the example inputs, recorded at a smaller size if that will do.

    Its values are then compared with the model's at the smaller size only.

    Raises:
        FuseqError: as `fuseq.capture` raises at the size of the example inputs.
    """
    small = _with_small_images(example_inputs)
    program = _recorded(model, small, example_inputs) if small else None
    return program or capture(model, example_inputs)


def _recorded(
    model: nn.Module, small: tuple[Tensor, ...], example_inputs: tuple[Tensor, ...]
) -> Program | None:
    try:
        program = capture(model, small)
    except FuseqError:
        return None
    images = {(index, dim) for index, x in enumerate(small) if x.dim() == 4 for dim in (2, 3)}
    if not images <= set(program.origin.dynamic):
        return None
    program.example_inputs = example_inputs
    shapes.propagate(program)
    return program


def _with_small_images(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """A corner of each image; None if they are small, or of several sizes that must fit."""
    sizes = {tuple(x.shape[2:]) for x in inputs if x.dim() == 4}
    if len(sizes) != 1 or all(n < _LARGE for size in sizes for n in size):
        return None
    height, width = (n if n < _LARGE else n % _PERIOD + _PERIOD for n in sizes.pop())
    return tuple(x[:, :, :height, :width] if x.dim() == 4 else x for x in inputs)
