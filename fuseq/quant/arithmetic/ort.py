"""ONNX Runtime's integer arithmetic: the CPU kernels of a QDQ graph after default optimizations.

Measured on and read in ONNX Runtime 1.31 on x86-64 with AVX2 or later. float32 throughout;
`fma(a, b, c)` rounds `a * b + c` once; `clamp` is to the limits of the output type.

    conv, linear, matmul   clamp(rint(acc * m) + z_y),  m = s_x * s_w / s_y
    global average pool    the same,  m = s_x / (s_y * count)
    add                    clamp(rint(fma(a, s_a / s_y, fma(b, s_b / s_y, fixed))))
                           fixed = z_y - fma(s_a / s_y, z_a, s_b / s_y * z_b)
    mul                    clamp(rint(acc * m + z_y)),  m = s_a * s_b / s_y
    average pool           clamp(rint(mean / s_y + z_y)), mean summed row by row
    anything else          clamp(rint(f(s_x * (q - z_x)) / s_y) + z_y), as `ort_float` says

Note where the zero point enters: added before `rint` it moves ties (halves go to the even
*output*) and is itself subject to rounding. Integer kernels exist for 8 bits only. Sources:
`core/mlas/lib/{quantize,qladd,qlmul,qlgavgpool}.cpp` and
`contrib_ops/cpu/quantization/{qlinear_pool,qlinear_softmax}.cc` of
github.com/microsoft/onnxruntime (MIT).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from fuseq.quant.arithmetic.base import Arithmetic, Pair
from fuseq.quant.arithmetic.ort_float import OnnxRuntimeFloat, fma, mean_of_windows
from fuseq.quant.grid import Grid, along

_FLOAT = OnnxRuntimeFloat()


class OnnxRuntime(OnnxRuntimeFloat):
    """ONNX Runtime, CPU execution provider, x86-64: its integer kernels, and float for the rest."""

    name: ClassVar[str] = "ort"
    inexact: ClassVar[frozenset[str]] = frozenset()

    def between(self, op: str, *grids: Grid) -> Arithmetic:
        """Integer kernels take and give 8 bits; a transposed convolution has none."""
        narrow = all(grid.dtype in ("uint8", "int8") for grid in grids)
        return self if narrow and op != "conv_transpose2d" else _FLOAT

    def requantize_accumulator(
        self, accumulator: Tensor, multiplicands: tuple[Grid, Grid], output_grid: Grid, axis: int
    ) -> Tensor:
        """Output stage of QLinearConv, QGemm and QLinearMatMul."""
        multiplier = self.float32_multiplier(multiplicands, output_grid)
        return _scale(accumulator.float(), along(multiplier, accumulator, axis), output_grid)

    def float32_multiplier(self, multiplicands: tuple[Grid, Grid], output_grid: Grid) -> Tensor:
        """`s_x * s_w / s_y`."""
        x, weight = multiplicands
        return x.scale * weight.scale / output_grid.scale

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
        return output_grid.saturated(torch.round(total))

    def mul(self, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, output_grid: Grid) -> Tensor:
        """QLinearMul."""
        product = (a - grid_a.zero_point) * (b - grid_b.zero_point)
        multiplier = grid_a.scale * grid_b.scale / output_grid.scale
        return output_grid.saturated(
            torch.round(product.float() * multiplier + output_grid.zero_point)
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
        real = self.dequantize(x, grid)
        mean = mean_of_windows(real, kernel_size, stride, padding, count_include_pad)
        return output_grid.saturated(torch.round(mean / output_grid.scale + output_grid.zero_point))

    def mean(self, x: Tensor, grid: Grid, output_grid: Grid, dims: tuple[int, ...]) -> Tensor:
        """QLinearGlobalAveragePool: integer sum, one multiplication."""
        total = (x - grid.zero_point).sum(dims, keepdim=True)
        count = math.prod(x.shape[d] for d in dims)
        return _scale(total.float(), grid.scale / (output_grid.scale * count), output_grid)

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
        return output_grid.saturated(share + output_grid.zero_point).movedim(-1, dim)


def _scale(accumulator: Tensor, multiplier: Tensor, grid: Grid) -> Tensor:
    return grid.saturated(torch.round(accumulator * multiplier) + grid.zero_point)


def _exponentials(scale: float, length: int) -> Tensor:
    """Table of `exp(scale * (i - 255 + shift))`, the shift keeping sums of `length` finite."""
    largest = torch.finfo(torch.float32).max
    shift = max(0.0, math.log(largest / length) - 5) / scale
    return torch.tensor([math.exp((i - 255 + shift) * scale) for i in range(256)]).float()
