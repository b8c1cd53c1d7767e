"""Large images: what a small one shows as well, and takes no minutes.

Capture runs the model several times to see that the recording is right, passes prove what they do
in float64, and checks hold every integer of every value. Where a program holds for every image
size, a small image is enough for all of it.
"""

from __future__ import annotations

from torch import Tensor, nn

from fuseq import ops, shapes, verify
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.tracing import capture

_LARGE, _PERIOD = 384, 128
"""Rows or columns from which an image is large. Small ones keep the remainder by the period, so
that whatever divides the large size divides the small one too."""

_OF_SIZES = frozenset({"shape", "adaptive_avg_pool"})
"""Ops that become others where sizes are fixed."""


def capture_shapes(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Program:
    """A program with the shapes of the example inputs, recorded at a smaller size if that will do.

    Its values are then compared with the model's at the smaller size only.

    Raises:
        FuseqError: as `fuseq.capture` raises at the size of the example inputs.
    """
    small = _with_small_images(example_inputs)
    program = _recorded(model, small) if small else None
    if program is None:
        return capture(model, example_inputs)
    program.example_inputs = example_inputs
    shapes.propagate(program)
    return program


def for_any_image(model: nn.Module | Program, example_inputs: tuple[Tensor, ...]) -> Program | None:
    """A program with small example inputs that is the one for large ones, once it has their size.

    Args:
        model: a module, or a program.
        example_inputs: that it is written for.

    Returns:
        None where images are small, or the program follows their size: what is computed from a
        size becomes a number where that is fixed, and another one at another size.
    """
    small = _with_small_images(example_inputs)
    if small is None:
        return None
    program = _at(model, small) if isinstance(model, Program) else _recorded(model, small)
    if program is None or any(ops.name_of(program, n) in _OF_SIZES for n in program.graph.nodes):
        return None
    return program


def _recorded(model: nn.Module, small: tuple[Tensor, ...]) -> Program | None:
    try:
        program = capture(model, small)
    except FuseqError:
        return None
    return program if _images(small) <= set(program.origin.dynamic) else None


def _at(program: Program, small: tuple[Tensor, ...]) -> Program | None:
    free = _images(small) <= set(program.origin.dynamic)
    if not free or not verify.takes(program, [x.shape for x in small]):
        return None
    smaller = program.clone()
    smaller.example_inputs = small
    shapes.propagate(smaller)
    return smaller


def _images(inputs: tuple[Tensor, ...]) -> set[tuple[int, int]]:
    return {(index, dim) for index, x in enumerate(inputs) if x.dim() == 4 for dim in (2, 3)}


def _with_small_images(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """A corner of each image; None if they are small, or of several sizes that must fit."""
    sizes = {tuple(x.shape[2:]) for x in inputs if x.dim() == 4}
    if len(sizes) != 1 or all(n < _LARGE for size in sizes for n in size):
        return None
    height, width = (n if n < _LARGE else n % _PERIOD + _PERIOD for n in sizes.pop())
    corners = (x[:, :, :height, :width] if x.dim() == 4 else x for x in inputs)
    return tuple(x.contiguous() for x in corners)
