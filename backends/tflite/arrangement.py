"""How values lie in a TFLite file: images with their channels last.

A value of four or more dimensions, `(N, C.., H, W)` in the program, is stored `(N, H, W, C..)`;
values of fewer are stored as they are. So a reshape that only splits or joins channels (a channel
shuffle) stays a reshape, and a network of convolutions has no transpose anywhere.

For pixel `(i, j)` of colour `c` torch's pixel shuffle reads channel `c r^2 + i r + j`, and
DEPTH_TO_SPACE `(i r + j) C + c`. The stored channels of what feeds it (or of what SPACE_TO_DEPTH
gives) are therefore in *block order*: stored channel `(i r + j) C + c` is the program's
`c r^2 + i r + j`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fuseq.backends.tflite.file import File


def stored_axes(rank: int) -> tuple[int, ...]:
    """Dimensions of the program in the order in which they are stored."""
    return tuple(range(rank)) if rank < 4 else (0, rank - 2, rank - 1, *range(1, rank - 2))


def stored_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of a value as stored."""
    return tuple(shape[axis] for axis in stored_axes(len(shape)))


def stored_axis(axis: int, rank: int) -> int:
    """Where a dimension of the program is stored."""
    return stored_axes(rank).index(axis % rank)


def inverse(axes: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes another."""
    return tuple(int(i) for i in np.argsort(axes))


def block_order(channels: int, block: int) -> npt.NDArray[np.int64]:
    """The program's channel at each stored channel, for values in block order.

    Args:
        channels: all of them, `block**2` times those of the enlarged image.
        block: factor of the pixel shuffle.
    """
    return np.arange(channels).reshape(channels // block**2, block**2).T.reshape(-1)


def in_program_order(
    array: npt.NDArray[Any], axes: Sequence[int], block: int = 0, axis: int = 0
) -> npt.NDArray[Any]:
    """A stored array as the program has it.

    Args:
        array: as stored.
        axes: dimensions of the program in the order in which they are stored.
        block: factor of a pixel shuffle whose block order the array has, or 0.
        axis: dimension of the program that runs over the ordered channels.
    """
    array = array.transpose(inverse(axes))
    if block:
        order = block_order(array.shape[axis], block)
        array = np.take(array, inverse(order.tolist()), axis)
    return array


def moves_nothing(shape: Sequence[int], axes: Sequence[int]) -> bool:
    """Whether a transpose leaves the order of the elements: dimensions of one element move only."""
    long = [axis for axis in axes if shape[axis] != 1]
    return long == sorted(long)


def transposed(
    file: File, source: int, shape: Sequence[int], axes: Sequence[int], output: int
) -> int:
    """A transpose of a tensor of `shape`, as a reshape where it moves no element."""
    if moves_nothing(shape, axes) and not file.is_open:
        return reshaped(file, source, output)
    return file.op("TRANSPOSE", [source, file.integers(*axes)], output, "Transpose")


def copied(file: File, source: int, output: int) -> int:
    """The same in a tensor of its own."""
    if not file.is_open:
        return reshaped(file, source, output)
    axes = file.integers(*range(len(file.shapes[source])))
    return file.op("TRANSPOSE", [source, axes], output, "Transpose")


def reshaped(file: File, source: int, output: int) -> int:
    """The elements of a tensor in the shape of another."""
    shape = file.shapes[output]
    return file.op(
        "RESHAPE", [source, file.integers(*shape)], output, "Reshape", newShape=list(shape)
    )


def reshaped_value(
    file: File, source: int, before: Sequence[int], after: Sequence[int], output: int
) -> int:
    """A reshape of the program on what is stored.

    Args:
        file: to write to.
        source: tensor, stored.
        before: its shape in the program.
        after: the wished shape in the program.
        output: tensor for the result, stored.
    """
    images = min(len(before), len(after)) >= 4
    if images and before[0] == after[0] and before[-2:] == after[-2:]:
        return reshaped(file, source, output)
    plain = source
    axes = inverse(stored_axes(len(before)))
    if not moves_nothing(stored_shape(before), axes):
        plain = file.like(source, f"{file.name(source)}.channels_first", before)
        transposed(file, source, stored_shape(before), axes, plain)
    axes = stored_axes(len(after))
    if moves_nothing(after, axes):
        return reshaped(file, plain, output)
    wished = file.like(output, f"{file.name(output)}.channels_first", after)
    reshaped(file, plain, wished)
    return transposed(file, wished, after, axes, output)
