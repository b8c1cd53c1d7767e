"""Straight-through gradients for the integers of any arithmetic.

In training a value on a grid is carried as float32 *centered* integers, `c = q - zero_point`, so
that `real = scale * c` and padding is zero. Every op gives forward the integers that the target's
arithmetic gives, and backward the gradient of

    c = clamp(rint(v), qmin - z, qmax - z)

as `fuseq.qat.gradients` has it. For a weighted op `v = m * acc` with `acc = sum c_x c_w + c_b` and
`m = s_x s_w / s_y`; for any other one `v = f(reals) / s_y`. Both are differentiated as they stand.

Since a scale divides where a value is rounded and multiplies where it is read, a scale that wants a
gradient gets, of both together,

    dL/ds = dL/dx * (rint(v) - v)   inside the range,   dL/dx * c   where it is cut

which is eq. 3 of LSQ (Esser et al., ICLR 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fuseq.qat.addition import added
from fuseq.qat.gradients import ends, instead, integers, limits, rounded
from fuseq.qat.weighted import Convolution, learned_sum, weighted
from fuseq.quant.arithmetic.base import Arithmetic, Function, Pair
from fuseq.quant.grid import Grid, along


class StraightThrough(Arithmetic):
    """Another arithmetic on centered integers, with gradients.

    Attributes:
        arithmetic: whose integers it gives.
        extremes: smallest and largest real that was rounded, two 0-d tensors for each rounding, in
            order; None to skip them.
        activation: what the sums of a layer go through, or None.
    """

    name: ClassVar[str] = "straight-through"

    def __init__(
        self,
        arithmetic: Arithmetic,
        extremes: list[Tensor] | None = None,
        activation: Function | None = None,
    ) -> None:
        self.arithmetic, self.extremes, self.activation = arithmetic, extremes, activation

    @property
    def means_anywhere(self) -> bool:
        """As the other arithmetic."""
        return self.arithmetic.means_anywhere

    def between(self, op: str, *grids: Grid) -> StraightThrough:
        """As the other arithmetic chooses."""
        return StraightThrough(self.arithmetic.between(op, *grids), self.extremes)

    def activated(self, activation: Function) -> StraightThrough:
        """The other arithmetic with an activation on its sums, and the gradient of both."""
        return StraightThrough(self.arithmetic.activated(activation), self.extremes, activation)

    def slopes(self, weight: Tensor) -> Tensor:
        """The other arithmetic's, with the gradient of the real ones."""
        return instead(weight, self.arithmetic.slopes(weight.detach()))

    def quantize(self, real: Tensor, grid: Grid) -> Tensor:
        """Centered integers of reals."""
        return self._through(real, grid, lambda: self.arithmetic.quantize(real, grid))

    def dequantize(self, q: Tensor, grid: Grid) -> Tensor:
        """Reals of centered integers, float32."""
        return q * grid.scale

    def requantize_accumulator(
        self, accumulator: Tensor, multiplicands: tuple[Grid, Grid], output_grid: Grid, axis: int
    ) -> Tensor:
        """Bring exact sums to the output grid."""
        x, weight = multiplicands
        multiplier = self.arithmetic.float32_multiplier(multiplicands, output_grid)
        if multiplier is None:
            real = accumulator.float() * along(x.scale * weight.scale, accumulator, axis)
            real = real if self.activation is None else self.activation(real)
            exact = accumulator.detach().double()
            arguments = (exact, multiplicands, output_grid, axis)
            kernel = partial(self.arithmetic.requantize_accumulator, *arguments)
            return self._through(real, output_grid, kernel)
        v = accumulator.float() * along(multiplier, accumulator, axis)
        self._observe(v, output_grid.scale)
        return rounded(v, limits(output_grid))

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
        """Convolution; weight and bias are reals."""
        convolution = Convolution(stride, padding, dilation, groups=groups)
        return self._weighted(convolution, x, weight, bias, (grid, weight_grid, output_grid))

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
        """Transposed convolution; weight and bias as for `convolve`."""
        convolution = Convolution(stride, padding, dilation, True, output_padding, groups)
        return self._weighted(convolution, x, weight, bias, (grid, weight_grid, output_grid))

    def linear(
        self,
        x: Tensor,
        grid: Grid,
        weight: Tensor,
        weight_grid: Grid,
        bias: Tensor | None,
        output_grid: Grid,
    ) -> Tensor:
        """Linear layer: a convolution of one column, its rows being all but the last dimension."""
        column = x.reshape(1, -1, x.shape[-1], 1).transpose(1, 2)
        grids = (grid, weight_grid, output_grid)
        result = self._weighted(Convolution(), column, weight[:, :, None, None], bias, grids)
        return result.transpose(1, 2).reshape(*x.shape[:-1], -1)

    def matmul(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """Product of two activations."""
        return self._pair("matmul", a, grid_a, b, grid_b, output_grid)

    def requantize(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """The same reals on another grid."""
        learned = grid.scale.requires_grad or output_grid.scale.requires_grad
        if grid == output_grid and not learned:  # two that learn are equal for this step only
            self._observe(x, grid.scale)
            return x
        return self._unary("requantize", lambda real: real, x, grid, output_grid)

    def add(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """`a + b`."""
        grids = (grid_a, grid_b, output_grid)
        if any(grid.scale.requires_grad for grid in grids):
            return self._pair("add", a, grid_a, b, grid_b, output_grid)
        return added(a, b, grids, self.arithmetic, self.extremes)

    def sub(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """`a - b`."""
        return self._pair("sub", a, grid_a, b, grid_b, output_grid)

    def mul(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """`a * b`."""
        return self._pair("mul", a, grid_a, b, grid_b, output_grid)

    def square(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """`x * x`."""
        return self._unary("square", torch.square, x, grid, output_grid)

    def div(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """`a / b`."""
        return self._pair("div", a, grid_a, b, grid_b, output_grid)

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
        """Average pool."""
        return self._unary(
            "average_pool",
            lambda real: F.avg_pool2d(real, kernel_size, stride, padding, False, count_include_pad),
            x, grid, output_grid,
            kernel_size=kernel_size, stride=stride, padding=padding,
            count_include_pad=count_include_pad,
        )  # fmt: skip

    def mean(self, x: Tensor, grid: Grid, output_grid: Grid, dims: tuple[int, ...]) -> Tensor:
        """Mean over dimensions, kept."""
        return self._unary(
            "mean", lambda real: real.mean(dims, keepdim=True), x, grid, output_grid, dims=dims
        )

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
        """Bilinear resize."""
        return self._unary(
            "interpolate_bilinear",
            lambda real: F.interpolate(real, size, scale_factor, "bilinear", align_corners),
            x, grid, output_grid,
            size=size, scale_factor=scale_factor, align_corners=align_corners,
        )  # fmt: skip

    def relu(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """`max(x, 0)`."""
        return self._unary("relu", torch.relu, x, grid, output_grid)

    def clamp(self, x: Tensor, grid: Grid, output_grid: Grid, low: float, high: float) -> Tensor:
        """`min(max(x, low), high)`."""
        return self._unary(
            "clamp", lambda real: real.clamp(low, high), x, grid, output_grid, low=low, high=high
        )

    def leaky_relu(self, x: Tensor, grid: Grid, output_grid: Grid, negative_slope: float) -> Tensor:
        """`x` where positive, `negative_slope * x` elsewhere."""
        return self._unary(
            "leaky_relu",
            lambda real: F.leaky_relu(real, negative_slope),
            x,
            grid,
            output_grid,
            negative_slope=negative_slope,
        )

    def prelu(self, x: Tensor, grid: Grid, weight: Tensor, output_grid: Grid) -> Tensor:
        """`leaky_relu` with a slope per channel that is trained."""
        real = F.prelu(self.dequantize(x, grid), weight)
        return self._through(
            real,
            output_grid,
            lambda: self.arithmetic.prelu(integers(x, grid), grid, weight, output_grid),
        )

    def instance_norm(
        self,
        x: Tensor,
        grid: Grid,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        output_grid: Grid,
    ) -> Tensor:
        """Channels by their own mean and variance; weight and bias are trained."""
        real = F.instance_norm(self.dequantize(x, grid), weight=weight, bias=bias, eps=eps)
        arguments = (integers(x, grid), grid, weight, bias, eps, output_grid)
        return self._through(real, output_grid, partial(self.arithmetic.instance_norm, *arguments))

    def rsqrt(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """`1 / sqrt(x)`; below half a step the gradient is zero, where it would be infinite."""
        half = float(grid.scale.detach()) / 2
        return self._unary("rsqrt", lambda x: x.clamp_min(half).rsqrt(), x, grid, output_grid)

    def sigmoid(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """`1 / (1 + exp(-x))`."""
        return self._unary("sigmoid", torch.sigmoid, x, grid, output_grid)

    def tanh(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """Hyperbolic tangent."""
        return self._unary("tanh", torch.tanh, x, grid, output_grid)

    def hard_sigmoid(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """`clamp(x / 6 + 1 / 2, 0, 1)`."""
        return self._unary("hard_sigmoid", F.hardsigmoid, x, grid, output_grid)

    def hard_swish(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """`x * hard_sigmoid(x)`."""
        return self._unary("hard_swish", F.hardswish, x, grid, output_grid)

    def silu(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """`x * sigmoid(x)`."""
        return self._unary("silu", F.silu, x, grid, output_grid)

    def gelu(self, x: Tensor, grid: Grid, output_grid: Grid, approximate: str) -> Tensor:
        """`x` times the normal distribution function."""
        return self._unary(
            "gelu",
            lambda real: F.gelu(real, approximate=approximate),
            x,
            grid,
            output_grid,
            approximate=approximate,
        )

    def softmax(self, x: Tensor, grid: Grid, output_grid: Grid, dim: int) -> Tensor:
        """`exp(x) / sum exp(x)` along `dim`."""
        return self._unary("softmax", lambda real: real.softmax(dim), x, grid, output_grid, dim=dim)

    def _weighted(
        self,
        convolution: Convolution,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        grids: tuple[Grid, Grid, Grid],
    ) -> Tensor:
        learns = any(grid.scale.requires_grad for grid in grids)
        groups, transposed = convolution.groups, convolution.transposed
        depthwise = groups > 1 and weight.shape[1] == 1 and not transposed
        sums = self.arithmetic.of_sums(groups=groups, depthwise=depthwise, transposed=transposed)
        if not learns and self.activation is None:
            return weighted(convolution, x, weight, bias, grids, sums, self.extremes)
        total = learned_sum(convolution, x, weight, bias, grids[:2])
        multiplicands = convolution.multiplicands(*grids[:2])
        straight = StraightThrough(sums, self.extremes, self.activation)
        return straight.requantize_accumulator(total, multiplicands, grids[2], axis=1)

    def _unary(
        self,
        name: str,
        function: Callable[[Tensor], Tensor],
        x: Tensor,
        grid: Grid,
        output_grid: Grid,
        **options: Any,
    ) -> Tensor:
        kernel = getattr(self.arithmetic, name)
        return self._through(
            function(self.dequantize(x, grid)),
            output_grid,
            lambda: kernel(integers(x, grid), grid, output_grid, **options),
        )

    def _pair(
        self, name: str, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid
    ) -> Tensor:
        function, kernel = getattr(torch, name), getattr(self.arithmetic, name)
        return self._through(
            function(self.dequantize(a, grid_a), self.dequantize(b, grid_b)),
            output_grid,
            lambda: kernel(integers(a, grid_a), grid_a, integers(b, grid_b), grid_b, output_grid),
        )

    def _through(self, real: Tensor, grid: Grid, kernel: Callable[[], Tensor]) -> Tensor:
        """The integers of a kernel, with the gradient of the reals it stands for."""
        self._observe(real, None)
        with torch.no_grad():
            given = (kernel() - grid.zero_point).float()
        return rounded(real / grid.scale, limits(grid), given)

    def _observe(self, values: Tensor, scale: Tensor | None) -> None:
        if self.extremes is not None:
            found = ends(values.detach())
            self.extremes.append(found if scale is None else found * scale.detach())
