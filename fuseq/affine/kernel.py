"""Arithmetic on the kernels of forms: float64 `(channels, width, vertical taps, horizontal taps)`.

Output channel o holds root channels `first[o] .. first[o] + width`; dense and grouped kernels are
two layouts of the same numbers.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from fuseq.affine.axis import Axis

Axes: TypeAlias = tuple[Axis, Axis]
"""Vertical and horizontal axis."""


def group_start(in_channels: int, channels: int, groups: int) -> Tensor:
    """First input channel of each output channel's group: int64 `(channels,)`."""
    group = torch.arange(channels) // (channels // groups)
    return group * (in_channels // groups)


def shifted(kernel: Tensor, low: Tensor, first: Tensor, width: int) -> Tensor:
    """Kernel rows that start at root channel `low`, as rows of `width` that start at `first`."""
    if width == kernel.shape[1] and torch.equal(low, first):
        return kernel
    source = (first - low)[:, None] + torch.arange(width)
    valid = (source >= 0) & (source < kernel.shape[1])
    index = source.clamp(0, kernel.shape[1] - 1)[:, :, None, None]
    taken = kernel.gather(1, index.expand(-1, -1, *kernel.shape[2:]))
    return taken * valid[:, :, None, None]


def spread(kernel: Tensor, old: Axes, new: Axes) -> Tensor:
    """A kernel with zeros at the taps it lacks.

    Args:
        kernel: `(channels, width, old taps, old taps)`.
        old: its axes.
        new: axes with at least the same taps.

    Returns:
        `(channels, width, new taps, new taps)`.
    """
    for dim in (2, 3):
        before, after = old[dim - 2].taps, new[dim - 2].taps
        if before != after:
            position = torch.tensor([after.index(tap) for tap in before])
            shape = [*kernel.shape[:dim], len(after), *kernel.shape[dim + 1 :]]
            kernel = kernel.new_zeros(shape).index_copy_(dim, position, kernel)
    return kernel


def gathered(
    split: Tensor,
    outer: Axes,
    inner: Axes,
    joint: Axes,
) -> Tensor:
    """Adds up the products of taps that fall on one joint tap.

    Args:
        split: `(channels, outer taps, outer taps, width, inner taps, inner taps)`.
        outer: axes applied last.
        inner: axes applied first.
        joint: their composition.

    Returns:
        `(channels, width, joint taps, joint taps)`.
    """
    ordered = split.permute(0, 3, 1, 4, 2, 5)
    for dim in (2, 3):
        axis = dim - 2
        taps = torch.tensor(
            [
                joint[axis].taps.index(inner[axis].stride * q + r)
                for q in outer[axis].taps
                for r in inner[axis].taps
            ]
        )
        flat = ordered.flatten(dim, dim + 1)
        shape = [*flat.shape[:dim], len(joint[axis].taps), *flat.shape[dim + 1 :]]
        ordered = flat.new_zeros(shape).index_add_(dim, taps, flat)
    return ordered
