"""Qualcomm's HTP, as far as it is known: exact reals, rounded once, to within a step.

Measured on the emulator of QAIRT 2.51 from each op's own inputs: a convolution differs from the
exact result by one step in 2 to 3 % of its values, unbiased; sums, products, concats, pools and
norms by one step in less than 2 %; tanh, sigmoid, GELU and what moves values not at all. Families
of chips differ from each other by as much. So every op is `inexact`: integers of the target may lie
one step from ours, and are counted apart by the checks.

An activation that follows a layer is computed on its sums, whatever quantizer stands between.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from fuseq import ops
from fuseq.quant.arithmetic.ideal import Ideal
from fuseq.quant.grid import slope_grid


class Htp(Ideal):
    """Float64 throughout, one rounding at the output; slopes on eight bits."""

    name: ClassVar[str] = "htp"
    inexact: ClassVar[frozenset[str]] = ops.VOCABULARY

    def slopes(self, weight: Tensor) -> Tensor:
        """Slopes on their grid."""
        grid = slope_grid(weight, "uint8")
        return grid.dequantize(grid.quantize(weight))
