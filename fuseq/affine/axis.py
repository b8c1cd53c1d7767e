"""One spatial axis of a form: which positions of the root a position of the value reads.

A convolution of kernel size k, stride s, dilation d and padding (p, q) has taps d*j - p and extent
a = p + q - d*(k-1) - 1; the identity has the one tap 0 and a = -1. Padding, cropping and striding
are the one-tap cases, so all spatial operations are one: composition. Applying (s2, a2, taps q)
after (s1, a1, taps r) gives

    stride s1*s2,    taps s1*q + r,    extent a1 + s1*(a2 + 1),

the last because nested floors compose: the size is floor((H + a) / s) + 1 throughout. Extents are
attributes, not sizes: axes with equal stride and equal extent have equal sizes for every H.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fuseq.affine.refusal import RefusedError


@dataclass(frozen=True)
class Axis:
    """One spatial axis of a form.

    Attributes:
        stride: step in the root for one step in the value; positive.
        extent: `a` in `size = floor((H + a) / stride) + 1`.
        taps: offsets that are read, ascending.
    """

    stride: int
    extent: int
    taps: tuple[int, ...]

    @staticmethod
    def window(
        kernel: int, *, stride: int = 1, before: int = 0, after: int = 0, dilation: int = 1
    ) -> Axis:
        """Axis of a convolution that pads by `before` and `after` (negative: crops)."""
        taps = tuple(dilation * j - before for j in range(kernel))
        return Axis(stride, before + after - dilation * (kernel - 1) - 1, taps)

    def size(self, root_size: int) -> int:
        """Size of the value for a size of the root."""
        return (root_size + self.extent) // self.stride + 1

    def then(self, outer: Axis) -> Axis:
        """Axis of `outer` applied to a value of this axis."""
        taps = sorted({self.stride * q + r for q in outer.taps for r in self.taps})
        extent = self.extent + self.stride * (outer.extent + 1)
        return Axis(self.stride * outer.stride, extent, tuple(taps))

    def reads_before(self) -> int:
        """How far the first position read lies before the map; negative within it."""
        return -self.taps[0]

    def reads_after(self, size: int | None = None) -> int:
        """How far the last position read lies after the map; negative within it.

        Args:
            size: of the map, or None for the largest value over all sizes.
        """
        if size is None:
            return self.taps[-1] + self.extent + 1
        return self.stride * (self.size(size) - 1) + self.taps[-1] - size + 1

    def ring_before(self) -> int:
        """Positions of the root that the position before the map would read, if positive."""
        return self.taps[-1] - self.stride + 1

    def ring_after(self, root_size: int | None = None) -> int:
        """The same of the position after the map; the most over all sizes for None."""
        if root_size is None:
            return -self.extent - 1 - self.taps[0]
        return root_size - self.stride * self.size(root_size) - self.taps[0]


def united(axes: Sequence[Axis], root_size: int | None) -> Axis:
    """Axis with the taps of several.

    Args:
        axes: of values that are added or concatenated.
        root_size: the only size of the root at which they need agree, or None for all.

    Raises:
        RefusedError: stride-mismatch, size-mismatch.
    """
    strides, extents = {axis.stride for axis in axes}, {axis.extent for axis in axes}
    if len(strides) > 1:
        raise RefusedError(
            "stride-mismatch",
            f"branches of strides {sorted(strides)} meet",
            "give the branches one stride",
        )
    agree = root_size is not None and len({axis.size(root_size) for axis in axes}) == 1
    if len(extents) > 1 and not agree:
        raise RefusedError(
            "size-mismatch",
            f"branches differ in size by up to {max(extents) - min(extents)} for some input sizes",
            "pad and crop the branches alike",
        )
    return replace(axes[0], taps=tuple(sorted({tap for axis in axes for tap in axis.taps})))


IDENTITY = Axis.window(1)
