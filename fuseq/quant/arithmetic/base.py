"""What an arithmetic is: the integer result of every quantized op, as one runtime computes it.

Values are int32 tensors of quantized integers, each with its `Grid`; real values are
`scale * (q - zero_point)`. An op takes integers and grids and returns the integers on the output
grid. Runtimes agree on the integer part of the weighted ops,

    accumulator[o] = sum_k (x[k] - zero_point_x) * w[o, k] + bias[o]

and differ in how they bring it, and everything else, to the output grid. An op a runtime has no
integer kernel for runs on reals: dequantize, compute, quantize. That is the default here; an
arithmetic overrides what its runtime does otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from fuseq.quant.arithmetic.exact_sums import exact_sum
from fuseq.quant.grid import Grid, along

Pair = tuple[int, int]

Function: TypeAlias = Callable[[Tensor], Tensor]


class Arithmetic(ABC):
    """Integer results of quantized ops. Stateless; no input is mutated.

    Every method takes int32 tensors with their per-tensor `Grid`s and returns an int32 tensor on
    `output_grid`, shapes as the torch op of the same name gives them.

    Attributes:
        name: as `ARITHMETICS` has it.
        inexact: canonical names of the ops that the runtime computes in float in an order, or with
            functions, of the machine's own: integers of ours and of the runtime's may differ by one
            step there.
    """

    name: ClassVar[str]
    inexact: ClassVar[frozenset[str]] = frozenset()

    @property
    def means_anywhere(self) -> bool:
        """Whether means over any dimensions have an integer kernel, or only over whole maps."""
        return False

    def between(self, op: str, *grids: Grid) -> Arithmetic:
        """The arithmetic of an op, by canonical name, whose operands and result are on these grids.

        Another one where the runtime has no integer kernel for them.
        """
        return self

    def activated(self, activation: Function) -> Arithmetic:
        """This arithmetic, but for a function that a layer's sums go through before the rounding.

        Args:
            activation: of reals, any shape, to the same shape.
        """
        return _Activated(self, activation)

    def slopes(self, weight: Tensor) -> Tensor:
        """Slopes of a PReLU as the runtime holds them."""
        return weight

    @abstractmethod
    def quantize(self, real: Tensor, grid: Grid) -> Tensor:
        """Integers of reals, int32."""

    @abstractmethod
    def dequantize(self, q: Tensor, grid: Grid) -> Tensor:
        """Reals of integers, in the precision this arithmetic computes in."""

    def of_sums(
        self, *, groups: int = 1, depthwise: bool = False, transposed: bool = False
    ) -> Arithmetic:
        """Whose `requantize_accumulator` the sums of a convolution have.

        Args:
            groups: of the convolution.
            depthwise: whether each group has one input channel.
            transposed: whether it is a transposed one.
        """
        return self

    @abstractmethod
    def requantize_accumulator(
        self, accumulator: Tensor, multiplicands: tuple[Grid, Grid], output_grid: Grid, axis: int
    ) -> Tensor:
        """Bring integers at `scale_x * scale_w` to the output grid.

        Args:
            accumulator: float64 holding integers.
            multiplicands: grids of the input and of the weight (or second input).
            output_grid: grid of the result.
            axis: dimension of `accumulator` that a per-channel weight grid runs along.
        """

    def float32_multiplier(
        self, multiplicands: tuple[Grid, Grid], output_grid: Grid
    ) -> Tensor | None:
        """The float32 `m` with which `requantize_accumulator` is one multiplication.

        Training then does without the detour over integers.

        Returns:
            `m` as in `clamp(rint(float32(acc) * m) + z_y)`, 0-d or one for each channel; None for
            an arithmetic of another form.
        """
        return None

    def requantize(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """The same reals on another grid."""
        return self.lookup(x, grid, output_grid, lambda real: real)

    def convolve(
        self,
        x: Tensor,
        grid: Grid,
        weight: Tensor,
        weight_grid: Grid,
        bias: Tensor | None,
        output_grid: Grid,
        *,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> Tensor:
        """Convolution `[N, C, H, W] -> [N, O, H', W']`, padded with real zero.

        Args:
            x: integers of the input.
            grid: their grid.
            weight: int8 `[O, C / groups, kh, kw]`, zero point 0.
            weight_grid: per tensor or per output channel.
            bias: int32 `[O]` at `scale_x * scale_w`, or None.
            output_grid: grid of the result.
            stride: as `torch.nn.functional.conv2d`.
            padding: as `torch.nn.functional.conv2d`.
            dilation: as `torch.nn.functional.conv2d`.
            groups: as `torch.nn.functional.conv2d`.
        """
        total = exact_sum(
            lambda x, weight: F.conv2d(x, weight, None, stride, padding, dilation, groups),
            x - grid.zero_point,
            weight,
            grid,
        )
        if bias is not None:
            total = total + bias.double().reshape(-1, 1, 1)
        sums = self.of_sums(groups=groups, depthwise=groups > 1 and weight.shape[1] == 1)
        return sums.requantize_accumulator(total, (grid, weight_grid), output_grid, axis=1)

    def convolve_transposed(
        self,
        x: Tensor,
        grid: Grid,
        weight: Tensor,
        weight_grid: Grid,
        bias: Tensor | None,
        output_grid: Grid,
        *,
        stride: Pair = (1, 1),
        padding: Pair = (0, 0),
        output_padding: Pair = (0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> Tensor:
        """Transposed convolution `[N, C, H, W] -> [N, O, H', W']`.

        Args:
            x: integers of the input.
            grid: their grid.
            weight: int8 `[C, O / groups, kh, kw]`, zero point 0.
            weight_grid: along dimension 1: all groups have the scales of one.
            bias: int32 `[O]` at `scale_x * scale_w`, or None.
            output_grid: grid of the result.
            stride: as `torch.nn.functional.conv_transpose2d`.
            padding: as `torch.nn.functional.conv_transpose2d`.
            output_padding: as `torch.nn.functional.conv_transpose2d`.
            dilation: as `torch.nn.functional.conv_transpose2d`.
            groups: as `torch.nn.functional.conv_transpose2d`.
        """
        options = (stride, padding, output_padding, groups, dilation)
        total = exact_sum(
            lambda x, w: F.conv_transpose2d(x, w.transpose(0, 1), None, *options),
            x - grid.zero_point,
            weight.transpose(0, 1),
            grid,
        )
        if bias is not None:
            total = total + bias.double().reshape(-1, 1, 1)
        scales = (grid, weight_grid.repeated(groups))
        sums = self.of_sums(groups=groups, transposed=True)
        return sums.requantize_accumulator(total, scales, output_grid, axis=1)

    def linear(
        self,
        x: Tensor,
        grid: Grid,
        weight: Tensor,
        weight_grid: Grid,
        bias: Tensor | None,
        output_grid: Grid,
    ) -> Tensor:
        """Linear layer `[..., in] -> [..., out]`, weight int8 `[out, in]`, bias int32 `[out]`."""
        total = exact_sum(F.linear, x - grid.zero_point, weight, grid)
        if bias is not None:
            total = total + bias.double()
        return self.requantize_accumulator(total, (grid, weight_grid), output_grid, axis=-1)

    def matmul(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """Product of two activations, as `torch.matmul`."""
        total = (a - grid_a.zero_point).double() @ (b - grid_b.zero_point).double()
        return self.requantize_accumulator(total, (grid_a, grid_b), output_grid, axis=-1)

    def add(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """`a + b`, broadcasting."""
        return self._on_reals(torch.add, a, grid_a, b, grid_b, output_grid)

    def sub(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """`a - b`, broadcasting."""
        return self._on_reals(torch.sub, a, grid_a, b, grid_b, output_grid)

    def mul(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """`a * b`, broadcasting."""
        return self._on_reals(torch.mul, a, grid_a, b, grid_b, output_grid)

    def square(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """`x * x`, for which a runtime may have another kernel than for a product of two values."""
        return self.mul(x, grid, x, grid, output_grid)

    def div(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """`a / b`, broadcasting; infinities saturate, 0 / 0 is undefined in every runtime."""
        return self._on_reals(torch.div, a, grid_a, b, grid_b, output_grid)

    def concat(
        self, values: Sequence[Tensor], grids: Sequence[Grid], output_grid: Grid, dim: int
    ) -> Tensor:
        """Concatenation of values on grids of their own."""
        parts = zip(values, grids, strict=True)
        return torch.cat([self.requantize(x, grid, output_grid) for x, grid in parts], dim)

    def average_pool(
        self,
        x: Tensor,
        grid: Grid,
        output_grid: Grid,
        *,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair = (0, 0),
        count_include_pad: bool = True,
    ) -> Tensor:
        """Average pool of `[N, C, H, W]`, output size rounded down."""
        real = F.avg_pool2d(
            self.dequantize(x, grid), kernel_size, stride, padding, False, count_include_pad
        )
        return self.quantize(real, output_grid)

    def mean(self, x: Tensor, grid: Grid, output_grid: Grid, dims: tuple[int, ...]) -> Tensor:
        """Mean over dimensions, which stay with one element; see `means_anywhere`."""
        return self.quantize(self.dequantize(x, grid).mean(dims, keepdim=True), output_grid)

    def interpolate_bilinear(
        self,
        x: Tensor,
        grid: Grid,
        output_grid: Grid,
        *,
        size: Pair | None,
        scale_factor: tuple[float, float] | None,
        align_corners: bool,
    ) -> Tensor:
        """Bilinear resize of `[N, C, H, W]` to a size or by a factor, the other being None."""
        real = F.interpolate(
            self.dequantize(x, grid), size, scale_factor, "bilinear", align_corners
        )
        return self.quantize(real, output_grid)

    def relu(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """`max(x, 0)`."""
        return self.lookup(x, grid, output_grid, torch.relu)

    def clamp(self, x: Tensor, grid: Grid, output_grid: Grid, low: float, high: float) -> Tensor:
        """`min(max(x, low), high)`."""
        return self.lookup(x, grid, output_grid, lambda real: real.clamp(low, high))

    def leaky_relu(self, x: Tensor, grid: Grid, output_grid: Grid, negative_slope: float) -> Tensor:
        """`x` where positive, `negative_slope * x` elsewhere."""
        return self.lookup(x, grid, output_grid, lambda real: F.leaky_relu(real, negative_slope))

    def prelu(self, x: Tensor, grid: Grid, weight: Tensor, output_grid: Grid) -> Tensor:
        """`leaky_relu` with a real slope per channel (dimension 1), weight `[C]` or `[1]`."""
        real = self.dequantize(x, grid)
        return self.quantize(F.prelu(real, self.slopes(weight).to(real.dtype)), output_grid)

    def sigmoid(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """`1 / (1 + exp(-x))`."""
        return self.lookup(x, grid, output_grid, torch.sigmoid)

    def tanh(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """Hyperbolic tangent."""
        return self.lookup(x, grid, output_grid, torch.tanh)

    def rsqrt(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """`1 / sqrt(x)`; the root of zero gives the end of the grid, that of less is undefined."""
        return self.lookup(x, grid, output_grid, lambda real: 1 / real.sqrt())

    def hard_sigmoid(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """`clamp(x / 6 + 1 / 2, 0, 1)`."""
        return self.lookup(x, grid, output_grid, F.hardsigmoid)

    def hard_swish(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """`x * hard_sigmoid(x)`."""
        return self.lookup(x, grid, output_grid, F.hardswish)

    def silu(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """`x * sigmoid(x)`."""
        return self.lookup(x, grid, output_grid, F.silu)

    def gelu(self, x: Tensor, grid: Grid, output_grid: Grid, approximate: str) -> Tensor:
        """`x` times the normal distribution function, `approximate` as torch's."""
        return self.lookup(x, grid, output_grid, lambda real: F.gelu(real, approximate=approximate))

    def softmax(self, x: Tensor, grid: Grid, output_grid: Grid, dim: int) -> Tensor:
        """`exp(x) / sum exp(x)` along `dim`."""
        return self.quantize(self.dequantize(x, grid).softmax(dim), output_grid)

    def instance_norm(
        self,
        x: Tensor,
        grid: Grid,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        output_grid: Grid,
    ) -> Tensor:
        """Every channel of every image of `[N, C, H, W]` by its own mean and variance.

        Args:
            x: integers of the input.
            grid: their grid.
            weight: real factors `[C]`, or None for one.
            bias: real summands `[C]`, or None for zero.
            eps: added to the variance.
            output_grid: grid of the result.
        """
        real = self.dequantize(x, grid)
        weight, bias = (None if p is None else p.to(real.dtype) for p in (weight, bias))
        normed = F.instance_norm(real, weight=weight, bias=bias, eps=eps)
        return self.quantize(normed, output_grid)

    def lookup(
        self, x: Tensor, grid: Grid, output_grid: Grid, function: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Apply a function of one real, evaluated once per integer of the input grid."""
        every = torch.arange(grid.qmin, grid.qmax + 1, dtype=torch.int32, device=x.device)
        table = self.quantize(function(self.dequantize(every, grid)), output_grid)
        return table[(x - grid.qmin).long()]

    def _on_reals(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        a: Tensor,
        grid_a: Grid,
        b: Tensor,
        grid_b: Grid,
        output_grid: Grid,
    ) -> Tensor:
        real = function(self.dequantize(a, grid_a), self.dequantize(b, grid_b))
        return self.quantize(real, output_grid)


class _Activated(Arithmetic):
    """Another arithmetic whose layers compute an activation on their sums, and round once."""

    name: ClassVar[str] = "activated"

    def __init__(self, arithmetic: Arithmetic, activation: Function) -> None:
        self.arithmetic, self.activation = arithmetic, activation

    def quantize(self, real: Tensor, grid: Grid) -> Tensor:
        return self.arithmetic.quantize(real, grid)

    def dequantize(self, q: Tensor, grid: Grid) -> Tensor:
        return self.arithmetic.dequantize(q, grid)

    def requantize_accumulator(
        self, accumulator: Tensor, multiplicands: tuple[Grid, Grid], output_grid: Grid, axis: int
    ) -> Tensor:
        x, weight = multiplicands
        scale = x.scale.double() * along(weight.scale.double(), accumulator, axis)
        return self.quantize(self.activation(accumulator * scale), output_grid)
