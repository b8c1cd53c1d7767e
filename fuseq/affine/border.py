"""What surrounds a map: the bias rule, constants written over padding, and wrong margins.

Outside its map a form gives its bias, so padding is exact if it pads with the bias. Blocks that
convolve, add a bias and then pad with zeros overwrite the padding with the bias, side by side;
until the last side is written, the map has a border that no form can express.

Where a rule fails, the formula is wrong at the positions that read outside, and only there. A
window of stride s and first tap q turns m wrong rows at the top into `ceil((m - q) / s)`, none or
fewer if that is negative: a later crop may remove them all, and the form is exact again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fuseq.affine.kernel import Axes
from fuseq.affine.refusal import RefusedError


@dataclass(frozen=True)
class Margin:
    """Positions along the sides of a map where the formula is wrong.

    Attributes:
        widths: number of rows or columns: top, bottom, left, right.
        error: the rule that failed.
    """

    widths: tuple[int, ...]
    error: RefusedError

    @staticmethod
    def widest(margins: Iterable[Margin | None]) -> Margin | None:
        """Margin of a sum of maps of one size."""
        some = [margin for margin in margins if margin]
        if not some:
            return None
        return Margin(tuple(map(max, *(m.widths for m in some), (0,) * 4)), some[0].error)


@dataclass(frozen=True)
class Border:
    """A constant frame around a map, while it differs from the map's bias.

    Attributes:
        widths: of the frame: top, bottom, left, right.
        values: float64 `(3, 3, channels)`: (top, middle, bottom) x (left, middle, right); the
            middle is the map's own bias.
        rounding: relative rounding of the least precise constant written so far.
    """

    widths: tuple[int, int, int, int]
    values: Tensor
    rounding: float

    @staticmethod
    def around(bias: Tensor, constant: Tensor, axes: Axes) -> Border:
        """Border of a map that was just padded.

        Args:
            bias: float64 `(channels,)`, of the map.
            constant: float64 `(channels,)`, what it is padded with.
            axes: of the padding.
        """
        top, bottom, left, right = (
            max(0, width) for axis in axes for width in (axis.reads_before(), axis.reads_after())
        )
        values = constant.expand(3, 3, -1).clone()
        values[1, 1] = bias
        for row, width in ((0, top), (2, bottom)):
            if not width:
                values[row] = values[1]
        for column, width in ((0, left), (2, right)):
            if not width:
                values[:, column] = values[:, 1]
        return Border((top, bottom, left, right), values, 0.0)

    def overwritten(
        self, dim: int, start: int, end: int | None, value: Tensor, rounding: float
    ) -> Border:
        """Border after a constant was written over one side of it; arguments as of the form.

        Raises:
            RefusedError: layout if anything but one side is written.
        """
        before, after = self.widths[2 * (dim - 2) : 2 * (dim - 2) + 2]
        if before and (start, end) == (0, before):
            side = 0
        elif after and (start, end) == (-after, None):
            side = 2
        else:
            raise RefusedError("layout", "a constant is written over more than one padded border")
        values = self.values.clone()
        values[(side,) if dim == 2 else (slice(None), side)] = value
        return Border(self.widths, values, max(rounding, self.rounding))


def same(bias: Tensor, constant: Tensor, rounding: float) -> bool:
    """Whether a constant is the bias, to the rounding it was stored with."""
    tolerance = 8 * max(rounding, torch.finfo(torch.float64).eps)
    scale = torch.maximum(bias.abs().max(), constant.abs().max())
    return bool(((bias - constant).abs() <= tolerance * scale).all())


def border_bias(bias: Tensor, constant: Tensor) -> RefusedError:
    """The refusal of a map that is padded with something else than its bias."""
    gap = float((bias - constant).abs().max())
    return RefusedError(
        "border-bias",
        f"a value with a bias is padded with a constant {gap:.3g} away from that bias",
        "pad before the bias is added, or pad with the bias",
    )
