"""No runtime's arithmetic: exact reals, rounded once.

    q_out = clamp(rint(f(reals of the inputs) / scale_out) + zero_point_out)

in float64, halves to even. The yardstick that tells what a runtime's own rounding costs.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fuseq.quant.arithmetic.base import Arithmetic
from fuseq.quant.grid import Grid, along


class Ideal(Arithmetic):
    """Float64 throughout, one rounding at the output."""

    name: ClassVar[str] = "ideal"

    def quantize(self, real: Tensor, grid: Grid) -> Tensor:
        """Nearest integers, halves to even."""
        q = torch.round(real.double() / grid.scale.double()) + grid.zero_point
        return grid.saturated(q)

    def dequantize(self, q: Tensor, grid: Grid) -> Tensor:
        """Reals as float64; the product of an integer and a float32 scale is exact."""
        return (q - grid.zero_point).double() * grid.scale.double()

    def requantize_accumulator(
        self, accumulator: Tensor, multiplicands: tuple[Grid, Grid], output_grid: Grid, axis: int
    ) -> Tensor:
        """`accumulator * scale_x * scale_w` to the output grid."""
        x, weight = multiplicands
        scale = x.scale.double() * along(weight.scale.double(), accumulator, axis)
        return self.quantize(accumulator * scale, output_grid)
