"""The default LiteRT interpreter's kernels for 16-bit activations and 8-bit weights.

XNNPACK takes none of these ops, so that LiteRT's own kernels run. They are the reference kernels
(`tflite_ref`) but for

    quantize                      clamp(rint(x * (1 / s)))
    conv without groups, linear   acc * m as there, the second rounding with halves up, too;
                                  for a linear layer of one scale m = float32(s_x s_w) / s_y
    transposed conv               the same, of 8 output channels at a time; those that are left over
                                  as the reference kernel

Not modelled: sigmoid at input scales within 0.07 % of `2**-12`, tanh there and at `2**-11`. For
powers of two this interpreter has other kernels, up to 12 steps of `2**-15` away from these.

The products of matrices behind the latter are ruy's. Measured on ai-edge-litert 2.3.0, x86-64;
`EvalQuantizedPerChannel16x8` in `tflite/kernels/conv.cc` and `EvalQuantized` in
`fully_connected.cc` of github.com/google-ai-edge/LiteRT (Apache-2.0) say which kernel runs.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fuseq.quant.arithmetic.base import Arithmetic
from fuseq.quant.arithmetic.fixed_point import low_bits, multiplier_of, multiply_halves_up
from fuseq.quant.arithmetic.tflite_ref import TfliteReference16, accumulator_scale
from fuseq.quant.grid import Grid


class LiteRtDefault16(TfliteReference16):
    """The default LiteRT interpreter where activations have 16 bits."""

    name: ClassVar[str] = "xnnpack"

    def between(self, op: str, *grids: Grid) -> Arithmetic:
        """Itself."""
        return self

    def quantize(self, real: Tensor, grid: Grid) -> Tensor:
        """QUANTIZE of floats."""
        return grid.saturated(torch.round(real.float() * (1 / grid.scale)))

    def requantize_accumulator(
        self, accumulator: Tensor, multiplicands: tuple[Grid, Grid], output_grid: Grid, axis: int
    ) -> Tensor:
        """Output stage of CONV_2D and FULLY_CONNECTED."""
        scale = accumulator_scale(accumulator, multiplicands, output_grid, axis)
        scaled = multiply_halves_up(low_bits(accumulator.long()), multiplier_of(scale))
        return output_grid.saturated(scaled)

    def of_sums(
        self, *, groups: int = 1, depthwise: bool = False, transposed: bool = False
    ) -> Arithmetic:
        """TRANSPOSE_CONV has its own kernel; groups and DEPTHWISE_CONV_2D the reference one."""
        if transposed:
            return _TRANSPOSED
        return self if groups == 1 else _REFERENCE.of_sums(groups=groups, depthwise=depthwise)

    def linear(
        self,
        x: Tensor,
        grid: Grid,
        weight: Tensor,
        weight_grid: Grid,
        bias: Tensor | None,
        output_grid: Grid,
    ) -> Tensor:
        """FULLY_CONNECTED."""
        if weight_grid.scale.numel() > 1:
            return Arithmetic.linear(self, x, grid, weight, weight_grid, bias, output_grid)
        # The product of the scales in float32, times one.
        product = Grid(grid.scale * weight_grid.scale, grid.zero_point, grid.dtype)
        one = Grid(torch.ones_like(weight_grid.scale), weight_grid.zero_point, "int8")
        return Arithmetic.linear(self, x, product, weight, one, bias, output_grid)


class _Transposed(TfliteReference16):
    """Sums of transposed convolutions."""

    def requantize_accumulator(
        self, accumulator: Tensor, multiplicands: tuple[Grid, Grid], output_grid: Grid, axis: int
    ) -> Tensor:
        arguments = (accumulator, multiplicands, output_grid, axis)
        up, away = (a.requantize_accumulator(*arguments) for a in (_DEFAULT, _REFERENCE))
        whole = accumulator.shape[1] // 8 * 8
        return torch.cat((up[:, :whole], away[:, whole:]), 1)


_DEFAULT, _REFERENCE, _TRANSPOSED = LiteRtDefault16(), TfliteReference16(), _Transposed()
