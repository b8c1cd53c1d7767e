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

from dataclasses import dataclass


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


IDENTITY = Axis.window(1)
