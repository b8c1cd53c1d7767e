"""ONNX Runtime's float kernels between two quantizers.

What its CPU provider runs where it has no integer kernel: dequantize -> op -> quantize, in float32.
That is every op that reads or makes a value of 16 bits. What works on one element, or adds a few in
a fixed order, is modelled value for value (measured on ONNX Runtime 1.31, x86-64 with AVX2 or
later):

    add, sub, mul, div   one rounding each
    hard sigmoid         clamp(fl(fl(1/6) * x) + 1/2, 0, 1)
    sigmoid, tanh        rational approximations, not the correctly rounded functions
    average pool         the mean, summed row by row
    bilinear resize      four weighted corners, summed row by row
    rsqrt                a root and a division, one rounding each
    instance norm        fl(fl(x * factor) + offset), statistics from exact sums of integers

Convolutions (transposed ones with 8 bits too), matrix products and means of whole maps add in an
order that the machine chooses. Our sum is the exact one, rounded to float32 once, so an integer of
ours and one of the runtime's may differ by one step: those ops are `inexact`. Sources:
`core/mlas/lib/{quantize,logistic,tanh}.cpp`, `core/providers/cpu/tensor/upsample.cc`, and the rules
of what gets an integer kernel in `core/optimizer/qdq_transformer/selectors_actions` of
github.com/microsoft/onnxruntime (MIT).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fuseq.quant.arithmetic.base import Arithmetic, Pair
from fuseq.quant.grid import Grid, along

# Numerator and denominator in x**2, highest power first (the approximations of Eigen).
SIGMOID = (
    18.0,
    (4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05,
     8.51377133304701e-03, 2.48287947061529e-01),
    (6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06,
     1.70198817374094e-03, 1.16817656904453e-01, 9.93151921023180e-01),
)  # fmt: skip
TANH = (
    9.0,
    (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11,
     5.12229709037114e-08, 1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03),
    (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03),
)  # fmt: skip


class OnnxRuntimeFloat(Arithmetic):
    """ONNX Runtime, CPU execution provider, x86-64, where it computes in float."""

    name: ClassVar[str] = "ort-float"
    inexact: ClassVar[frozenset[str]] = frozenset(
        {"conv2d", "conv_transpose2d", "linear", "matmul", "mean", "softmax", "gelu", "silu"}
    )

    def quantize(self, real: Tensor, grid: Grid) -> Tensor:
        """QuantizeLinear."""
        return grid.quantize(real)

    def dequantize(self, q: Tensor, grid: Grid) -> Tensor:
        """DequantizeLinear."""
        return grid.dequantize(q)

    def requantize_accumulator(
        self, accumulator: Tensor, multiplicands: tuple[Grid, Grid], output_grid: Grid, axis: int
    ) -> Tensor:
        """Conv, Gemm and MatMul: the exact sum of the reals, then QuantizeLinear."""
        x, weight = multiplicands
        scale = x.scale.double() * along(weight.scale.double(), accumulator, axis)
        return self.quantize((accumulator * scale).float(), output_grid)

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
        """AveragePool."""
        real = self.dequantize(x, grid)
        mean = mean_of_windows(real, kernel_size, stride, padding, count_include_pad)
        return self.quantize(mean, output_grid)

    def mean(self, x: Tensor, grid: Grid, output_grid: Grid, dims: tuple[int, ...]) -> Tensor:
        """GlobalAveragePool: the exact mean of the reals, then QuantizeLinear."""
        total = (x - grid.zero_point).double().sum(dims, keepdim=True)
        mean = total * grid.scale.double() / math.prod(x.shape[d] for d in dims)
        return self.quantize(mean.float(), output_grid)

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
        """Resize, linear, in float: weights first, then the four corners in row order."""
        corners = []
        for axis, inputs in enumerate(x.shape[2:]):
            if scale_factor is None:
                assert size is not None
                outputs, scale = size[axis], size[axis] / inputs
            else:
                outputs, scale = int(inputs * scale_factor[axis]), scale_factor[axis]
            corners.append(_corners(outputs, inputs, scale, align_corners, x.device))
        rows, columns = corners
        real = self.dequantize(x, grid)
        total = torch.zeros((), device=x.device)
        for row, row_weight in rows:
            for column, column_weight in columns:
                corner = real.index_select(2, row).index_select(3, column)
                total = total + column_weight * row_weight.unsqueeze(1) * corner
        return self.quantize(total, output_grid)

    def instance_norm(
        self,
        x: Tensor,
        grid: Grid,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        output_grid: Grid,
    ) -> Tensor:
        """Statistics from sums of integers in float64, the rest in float32.

        The sums are exact below 2**53, so that neither their order nor the machine matters.
        """
        q, count = x.double(), x.shape[2] * x.shape[3]
        mean = q.sum((2, 3), keepdim=True) / count
        variance = (q.square().sum((2, 3), keepdim=True) / count - mean * mean).float()
        factor = variance.sign()
        if weight is not None:
            factor = factor * weight.reshape(-1, 1, 1)
        factor = factor / _root(variance * (grid.scale * grid.scale) + eps)
        offset = (grid.zero_point - mean).float() * grid.scale * factor
        if bias is not None:
            offset = offset + bias.reshape(-1, 1, 1)
        return self.quantize(self.dequantize(x, grid) * factor + offset, output_grid)

    def rsqrt(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """Sqrt, then Div."""
        return self.lookup(x, grid, output_grid, lambda real: 1 / _root(real))

    def sigmoid(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """QLinearSigmoid."""
        return self.lookup(
            x, grid, output_grid, lambda real: (_rational(real, *SIGMOID) + 0.5).clamp(0, 1)
        )

    def tanh(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """Tanh, in float."""
        return self.lookup(x, grid, output_grid, lambda real: _rational(real, *TANH))

    def hard_sigmoid(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """HardSigmoid."""
        return self.lookup(x, grid, output_grid, _hard_sigmoid)

    def hard_swish(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """HardSwish: HardSigmoid, then Mul."""
        return self.lookup(x, grid, output_grid, lambda real: real * _hard_sigmoid(real))


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """`a * b + c` rounded to float32 once.

    float64 holds the product of two float32 exactly, and the sum too while the terms are within
    a factor 2**20 of each other, or the smaller one decides a tie at most.
    """
    return torch.addcmul(c.double(), a.double(), b.double()).float()


def mean_of_windows(
    real: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, count_include_pad: bool
) -> Tensor:
    """Means of the windows of `[N, C, H, W]`, summed in float32 row by row."""
    top, left = padding
    padded = F.pad(real, (left, left, top, top))
    inside = F.pad(torch.ones_like(real[:1, :1]), (left, left, top, top))
    if count_include_pad:
        inside = torch.ones_like(inside)
    total = sum(_windows(padded, kernel_size, stride), torch.zeros(()))
    return total / sum(_windows(inside, kernel_size, stride), torch.zeros(()))


def _root(x: Tensor) -> Tensor:
    """Square root, correctly rounded to float32: what `torch.sqrt` may miss by the last bit.

    Its float64 root may be off by one there too, but no root of a float32 lies that close to the
    middle between two float32.
    """
    return x.double().sqrt().float()


def _hard_sigmoid(real: Tensor) -> Tensor:
    return (real * torch.tensor(1 / 6, dtype=torch.float32) + 0.5).clamp(0, 1)


def _rational(
    x: Tensor, limit: float, numerator: tuple[float, ...], denominator: tuple[float, ...]
) -> Tensor:
    x = x.clamp(-limit, limit)
    square = x * x
    return _polynomial(square, numerator) * x / _polynomial(square, denominator)


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    value, *rest = (torch.tensor(c, dtype=torch.float32, device=x.device) for c in coefficients)
    for coefficient in rest:
        value = fma(value, x, coefficient)
    return value


def _windows(x: Tensor, kernel_size: Pair, stride: Pair) -> list[Tensor]:
    """One strided view of `[N, C, H, W]` per tap of a pooling window, in row order."""
    (high, wide), (down, right) = kernel_size, stride
    windows = x.unfold(2, high, down).unfold(3, wide, right)
    return [windows[..., i, j] for i in range(high) for j in range(wide)]


def _corners(
    outputs: int, inputs: int, scale: float, align_corners: bool, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Both input positions an output position is interpolated from, with their weights."""
    position = torch.arange(outputs, dtype=torch.float32, device=device)
    if align_corners and outputs > 1:
        position = position * (inputs - 1) / (outputs - 1)
    elif scale != 1:
        position = (position + 0.5) / scale - 0.5
    position = position.clamp(0, inputs - 1)
    first = position.to(torch.int32)
    second = (first + 1).clamp(max=inputs - 1)
    to_first, to_second = (position - first).abs(), (position - second).abs()
    at_end = first == second
    half = torch.full_like(position, 0.5)
    return [
        (first, torch.where(at_end, half, to_second)),
        (second, torch.where(at_end, half, to_first)),
    ]
