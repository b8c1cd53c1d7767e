"""Convolutions in training: rounding of parameters, exact sum and requantization.

On centered integers `c` of scale `s_x`, with a weight `W`, a bias `B` and `m = s_x s_w / s_y`,

    w = clamp(rint(W / s_w)),   b = clamp(rint(B / (s_x s_w)))
    y = clamp(rint(m (sum c w + b)))

and backward, with `g = dL/dy` where `y` was not cut and 0 elsewhere, and `r = s_x / s_y`,

    dL/dc = conv^T(g, r s_w w),   dL/dW = r corr(g, c) where `w` was not cut,   dL/dB = sum g / s_y

which is what the chain rule makes of the single steps, `m` being moved from the gradients of
activations, which are large, to the weight, which is small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fuseq.qat import int8_convolution as int8
from fuseq.qat.gradients import ends, instead, limits, passed, rounded, uncut
from fuseq.quant.arithmetic.base import Arithmetic, Pair
from fuseq.quant.arithmetic.exact_sums import exact_sum
from fuseq.quant.grid import LIMITS, Grid, along, bias_grid

WEIGHT_LIMITS = (-127, 127)

EXACT = 2**24
"""float32 holds every integer up to here."""


@dataclass(frozen=True)
class Convolution:
    """Geometry of a convolution, as torch has it.

    Attributes:
        stride: down and right.
        padding: above and below, left and right.
        dilation: down and right.
        transposed: whether it is a transposed one.
        output_padding: of a transposed one.
        groups: its number.
    """

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    transposed: bool = False
    output_padding: Pair = (0, 0)
    groups: int = 1

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve."""
        return torch.convolution(x, weight, bias, *self._arguments)

    def gradients(
        self, gradient: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of input, weight and bias, as far as they are wanted."""
        bias_sizes = [gradient.shape[1]] if wanted[2] else None
        result: tuple[Tensor | None, Tensor | None, Tensor | None]
        result = torch.ops.aten.convolution_backward(
            gradient, x, weight, bias_sizes, *self._arguments, wanted
        )
        return result

    def is_faster_in_int8(self, x: Tensor) -> bool:
        """Whether `int8_convolution` has it, and has it faster."""
        return not self.transposed and int8.is_faster(x, self.groups)

    @property
    def axis(self) -> int:
        """Dimension of the weight that output channels run along."""
        return 1 if self.transposed else 0

    def multiplicands(self, grid: Grid, weight_grid: Grid) -> tuple[Grid, Grid]:
        """Grids of input and weight, the latter with a scale for each output channel."""
        return grid, weight_grid.repeated(self.groups if self.transposed else 1)

    @property
    def _arguments(self) -> tuple[Any, ...]:
        return (
            self.stride, self.padding, self.dilation,
            self.transposed, self.output_padding, self.groups,
        )  # fmt: skip


def weighted(
    convolution: Convolution,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grids: tuple[Grid, Grid, Grid],
    arithmetic: Arithmetic,
    extremes: list[Tensor] | None,
) -> Tensor:
    """Centered integers of a convolution, as one node of the autograd graph.

    Args:
        convolution: its geometry.
        x: centered integers `[N, C, H, W]`, float32.
        weight: reals.
        bias: reals `[O]`, or None.
        grids: of input, weight and result; none of them learns.
        arithmetic: brings sums to the grid of the result.
        extremes: gets the smallest and largest real that is rounded, `[2]`, if given.
    """
    result: Tensor = _Weighted.apply(x, weight, bias, convolution, grids, arithmetic, extremes)  # type: ignore[no-untyped-call]
    return result


def learned_sum(
    convolution: Convolution,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grids: tuple[Grid, Grid],
) -> Tensor:
    """Weighted sums of integers where scales learn: each step is a node of the autograd graph.

    Args:
        convolution: its geometry.
        x: centered integers `[N, C, H, W]`, float32.
        weight: reals.
        bias: reals `[O]`, or None.
        grids: of input and weight.

    Returns:
        Integers in float32, or in float64 where that does not hold them.
    """
    grid, weight_grid = grids
    w = rounded(weight / along(weight_grid.scale, weight, convolution.axis), WEIGHT_LIMITS)
    b = None
    if bias is not None:
        b = rounded(bias.double() / bias_grid(*grids, bias).scale.double(), LIMITS["int32"])
    total = convolution(x, w, None if b is None else b.float())
    if _holds_sums(convolution, grid, w, b):
        return total
    with torch.no_grad():
        exact = _float64_sum(convolution, x, grid, w, b)
    return instead(total, exact)


class _Weighted(torch.autograd.Function):
    """See the module's formulas.

    A network of small layers spends more time between operations than in them, one of large layers
    in taking memory; so this is one node, which takes no memory but for the result and a byte an
    element for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        convolution: Convolution,
        grids: tuple[Grid, Grid, Grid],
        arithmetic: Arithmetic,
        extremes: list[Tensor] | None,
    ) -> Tensor:
        grid, weight_grid, output_grid = grids
        scale = along(weight_grid.scale, weight, convolution.axis)
        steps = (weight / scale).round_()
        w = steps.clamp(*WEIGHT_LIMITS)
        weight_kept = uncut(steps, w)
        b = None
        if bias is not None:
            b = (bias / bias_grid(grid, weight_grid, bias).scale.double()).round_()
            b.clamp_(*LIMITS["int32"])
        smallest, largest = limits(grid)
        if not _holds_sums(convolution, grid, w, b):
            total = _float64_sum(convolution, x, grid, w, b)
        elif largest - smallest < 256 and convolution.is_faster_in_int8(x):
            x = int8.to_bytes(x, smallest)
            geometry = convolution.stride, convolution.padding, convolution.dilation
            total = int8.convolve(x, smallest, w, b, *geometry)
        else:
            total = convolution(x, w, None if b is None else b.float())

        multiplicands = convolution.multiplicands(grid, weight_grid)
        multiplier = arithmetic.float32_multiplier(multiplicands, output_grid)
        given = None
        if multiplier is None:
            q = arithmetic.requantize_accumulator(total.double(), multiplicands, output_grid, 1)
            given = (q - output_grid.zero_point).float()
            multiplier = grid.scale * multiplicands[1].scale / output_grid.scale
        v = total.float().mul_(along(multiplier, total, 1))
        if extremes is not None:
            extremes.append(ends(v) * output_grid.scale)
        clamped = v.round_().clamp(*limits(output_grid))
        kept = uncut(v, clamped)

        ratio = grid.scale / output_grid.scale
        ctx.save_for_backward(x, w.mul_(scale * ratio), kept, weight_kept)
        ctx.convolution, ctx.smallest = convolution, smallest
        ctx.ratio, ctx.output_scale = ratio, output_grid.scale
        return clamped if given is None else given

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, scaled_weight, kept, weight_kept = ctx.saved_tensors
        if x.dtype == torch.uint8:
            x = int8.from_bytes(x, ctx.smallest)
        gradient, wanted = passed(kept, gradients[0]), ctx.needs_input_grad[:3]
        of_x, of_weight, of_bias = ctx.convolution.gradients(gradient, x, scaled_weight, wanted)
        if of_weight is not None:
            of_weight = passed(weight_kept, of_weight).mul_(ctx.ratio)
        if of_bias is not None:
            of_bias = of_bias / ctx.output_scale
        return of_x, of_weight, of_bias, None, None, None, None


def _holds_sums(convolution: Convolution, grid: Grid, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether float32 holds all partial sums: `sum|w| max|c| + |b| <= 2**24` bounds them.

    Decided from the weights, for each layer and step.
    """
    low, high = limits(grid)
    largest, constant = max(-low, high), 0.0 if bias is None else float(bias.detach().abs().max())
    products = weight.numel() // weight.shape[convolution.axis]
    if products * 127 * largest + constant <= EXACT:  # whatever the weights are
        return True
    sums = weight.detach().abs().transpose(0, convolution.axis).flatten(1).sum(1)
    return float(sums.max().double() * largest + constant) <= EXACT


def _float64_sum(
    convolution: Convolution, x: Tensor, grid: Grid, weight: Tensor, bias: Tensor | None
) -> Tensor:
    axis = convolution.axis

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return convolution(x, weight.transpose(0, axis), None)

    exact = exact_sum(product, x.to(torch.int32), weight.transpose(0, axis), grid)
    return exact if bias is None else exact + along(bias, exact, 1)
