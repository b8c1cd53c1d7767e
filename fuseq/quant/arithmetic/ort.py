"""ONNX Runtime's arithmetic: the CPU kernels of a QDQ graph after default optimizations.

Measured on and read in ONNX Runtime 1.31 on x86-64 with AVX2 or later. float32 throughout;
`fma(a, b, c)` rounds `a * b + c` once; `clamp` is to the limits of the output type.

    conv, linear, matmul   clamp(rint(acc * m) + z_y),  m = s_x * s_w / s_y
    global average pool    the same,  m = s_x / (s_y * count)
    add                    clamp(rint(fma(a, s_a / s_y, fma(b, s_b / s_y, fixed))))
                           fixed = z_y - fma(s_a / s_y, z_a, s_b / s_y * z_b)
    mul                    clamp(rint(acc * m + z_y)),  m = s_a * s_b / s_y
    average pool           clamp(rint(mean / s_y + z_y)), mean summed row by row
    bilinear resize        in float, four weighted corners summed row by row
    anything else          clamp(rint(f(s_x * (q - z_x)) / s_y) + z_y)

Note where the zero point enters: added before `rint` it moves ties (halves go to the even
*output*) and is itself subject to rounding. Sigmoid and tanh are rational approximations, not
the correctly rounded function. Sources: `core/mlas/lib/{quantize,qladd,qlmul,qlgavgpool,
logistic,tanh}.cpp`, `contrib_ops/cpu/quantization/{qlinear_pool,qlinear_softmax}.cc`,
`core/providers/cpu/tensor/upsample.cc` of github.com/microsoft/onnxruntime (MIT).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fuseq.quant.arithmetic.base import Arithmetic, Pair, along
from fuseq.quant.grid import Grid

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


class OnnxRuntime(Arithmetic):
    """ONNX Runtime, CPU execution provider, x86-64."""

    name: ClassVar[str] = "ort"

    def quantize(self, real: Tensor, grid: Grid) -> Tensor:
        """QuantizeLinear."""
        return grid.quantize(real)

    def dequantize(self, q: Tensor, grid: Grid) -> Tensor:
        """DequantizeLinear."""
        return grid.dequantize(q)

    def requantize_accumulator(
        self, accumulator: Tensor, multiplicands: tuple[Grid, Grid], output_grid: Grid, axis: int
    ) -> Tensor:
        """Output stage of QLinearConv, QGemm and QLinearMatMul."""
        x, weight = multiplicands
        multiplier = x.scale * weight.scale / output_grid.scale
        return _scale(accumulator.float(), along(multiplier, accumulator, axis), output_grid)

    def add(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """QLinearAdd, the operand that is broadcast being the second one of the node.

        As the first one it would be rounded differently, and only in some memory layouts.
        """
        if a.numel() < b.numel() or a.numel() == 1:
            a, grid_a, b, grid_b = b, grid_b, a, grid_a
        ratio_a, ratio_b = grid_a.scale / output_grid.scale, grid_b.scale / output_grid.scale
        offset = fma(ratio_a, grid_a.zero_point, ratio_b * grid_b.zero_point)
        fixed = output_grid.zero_point.float() - offset
        total = fma(a, ratio_a, fma(b, ratio_b, fixed))
        return _saturate(torch.round(total), output_grid)

    def mul(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """QLinearMul."""
        product = (a - grid_a.zero_point) * (b - grid_b.zero_point)
        multiplier = grid_a.scale * grid_b.scale / output_grid.scale
        return _saturate(
            torch.round(product.float() * multiplier + output_grid.zero_point), output_grid
        )

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
        """QLinearAveragePool: float32 sums, row by row."""
        top, left = padding
        padded = F.pad(self.dequantize(x, grid), (left, left, top, top))
        inside = F.pad(torch.ones_like(x[:1, :1], dtype=torch.float32), (left, left, top, top))
        total = sum(_windows(padded, kernel_size, stride), torch.zeros(()))
        if count_include_pad:
            inside = torch.ones_like(inside)
        mean = total / sum(_windows(inside, kernel_size, stride), torch.zeros(()))
        return _saturate(
            torch.round(mean / output_grid.scale + output_grid.zero_point), output_grid
        )

    def global_average_pool(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """QLinearGlobalAveragePool: integer sum, one multiplication."""
        total = (x - grid.zero_point).sum((2, 3), keepdim=True)
        count = x.shape[2] * x.shape[3]
        return _scale(total.float(), grid.scale / (output_grid.scale * count), output_grid)

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

    def sigmoid(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """QLinearSigmoid."""
        return self.lookup(
            x, grid, output_grid, lambda real: (_rational(real, *SIGMOID) + 0.5).clamp(0, 1)
        )

    def tanh(self, x: Tensor, grid: Grid, output_grid: Grid) -> Tensor:
        """Tanh, in float."""
        return self.lookup(x, grid, output_grid, lambda real: _rational(real, *TANH))

    def softmax(self, x: Tensor, grid: Grid, output_grid: Grid, dim: int) -> Tensor:
        """QLinearSoftmax: a table of exponentials shifted so that the largest input is 255."""
        x = x.movedim(dim, -1)
        table = _exponentials(float(grid.scale), x.shape[-1]).to(x.device)
        exponential = table[(x - x.amax(-1, keepdim=True) + 255).long()]
        total = sum(exponential.unbind(-1), torch.zeros((), device=x.device)).unsqueeze(-1)
        inverse_scale = torch.floor(1 / output_grid.scale)
        share = torch.round(exponential * inverse_scale / total)
        if output_grid.dtype == "uint8":
            # One or two inputs can overflow to infinity, which converts to unsigned 0.
            share = torch.where(share.isinf(), 0.0, share)
        return _saturate(share + output_grid.zero_point, output_grid).movedim(-1, dim)


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """`a * b + c` rounded to float32 once.

    float64 holds the product of two float32 exactly, and the sum too while the terms are within
    a factor 2**20 of each other, or the smaller one decides a tie at most.
    """
    return (a.double() * b.double() + c.double()).float()


def _scale(accumulator: Tensor, multiplier: Tensor, grid: Grid) -> Tensor:
    return _saturate(torch.round(accumulator * multiplier) + grid.zero_point, grid)


def _saturate(q: Tensor, grid: Grid) -> Tensor:
    return q.clamp(grid.qmin, grid.qmax).to(torch.int32)


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


def _exponentials(scale: float, length: int) -> Tensor:
    """Table of `exp(scale * (i - 255 + shift))`, the shift keeping sums of `length` finite."""
    largest = torch.finfo(torch.float32).max
    shift = max(0.0, math.log(largest / length) - 5) / scale
    return torch.tensor([math.exp((i - 255 + shift) * scale) for i in range(256)]).float()
