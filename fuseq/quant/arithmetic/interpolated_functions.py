"""Functions of 16-bit integers in LiteRT: tables of few entries, interpolated in integers.

*Sigmoid and tanh* have one table, entries at `i / 24`, 16 bits behind the point, for half an axis:

    table[i] = round(2**16 (f(i / 24) - f''(i / 24) / (16 * 24**2))),     f the sigmoid

where the second term halves the largest error of the chords between entries. Inputs are first
brought to steps of `1 / (3 * 2**12)`, and tanh(x) is 2 f(2 x) - 1. Results are at `2**-15`.

*Any other function* `g` has 513 entries over the input grid, 128 integers apart, in steps of the
output; each is lowered by half of what the chord to the next is too high in its middle:

    table[i] = away(g_i / s) - away((away((g_i' / s + away(g_i / s)) / 2) - away(m_i / s)) / 2)

with `g_i` and `g_i'` at the ends of a chord, `m_i` in its middle, `s` the output scale times
`65535 / 65536` and `away` rounding halves away from zero. Computed in float32, in float64 for

*softmax* along a dimension, with `d = x - max x`,

    e     = exp(s_x d) at 2**-15, over [-10, 0]
    y     = e / sum e, the reciprocal by a table of 1 / (1 + t) over [0, 1].

Sources: `sigmoid_table_uint16`, `LUTPopulateInt16` and `LUTLookup` in
`tflite/kernels/internal/common.h`, `integer_ops/{logistic,tanh}.h` and `softmax.h` in
`tflite/kernels/internal/reference`, `tflite/kernels/{activations,elementwise}.cc` of
github.com/google-ai-edge/LiteRT (Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fuseq.quant.arithmetic.fixed_point import low_bits, multiplier_of, multiply
from fuseq.quant.grid import Grid

Function = Callable[[Tensor], Tensor]


def sigmoid(x: Tensor, grid: Grid) -> Tensor:
    """LOGISTIC, at a scale of `2**-15`."""
    steps = _in_steps(x, float(grid.scale), largest_shift=0)
    result = _on_the_right(steps.abs(), bits=9, end=0x7FFF << 10)
    result = torch.where(steps >= 0, result + 2**9, 2**25 - result + 2**9 - 1)
    return (result >> 10).to(torch.int32)


def tanh(x: Tensor, grid: Grid) -> Tensor:
    """TANH, at a scale of `2**-15`."""
    steps = _in_steps(x, float(grid.scale), largest_shift=1)
    result = _on_the_right(steps.abs(), bits=8, end=0xFFFF << 8)
    result = torch.where(steps >= 0, result - 2**23 + 2**7, 2**23 - result + 2**7 - 1)
    return (result >> 8).to(torch.int32)


def interpolated(x: Tensor, grid: Grid, output_grid: Grid, function: Function) -> Tensor:
    """A function of reals by a table of 513, in float32; both grids symmetric."""
    table = _table(function, grid.scale * -32768, grid.scale * 32767, output_grid.scale)
    return _look_up(x, table).to(torch.int32)


def softmax(x: Tensor, grid: Grid, dim: int) -> Tensor:
    """SOFTMAX, at a scale of `2**-15`."""
    step = torch.tensor(1 / 65535, dtype=torch.float64)
    ten = torch.tensor(10 / 65535, dtype=torch.float64)
    exponentials = _table(torch.exp, ten * -65535, ten * 0, 2 * step)
    reciprocals = _table(lambda t: 1 / (1 + t), step * 0, step * 65535, 2 * step)
    difference = (x - x.amax(dim, keepdim=True)).long()
    scaled = multiply(difference, multiplier_of(grid.scale.double() / (10 / 65535))) + 32767
    exponential = _look_up(scaled.clamp(-32768, 32767), exponentials)
    total = exponential.sum(dim, keepdim=True)
    length = torch.frexp(total.double()).exponent.long()
    mantissa = (total << (31 - length)) + 2**13 >> 14
    reciprocal = _look_up((mantissa - 2**15 - 2**16).clamp(-32768, 32767), reciprocals)
    half = torch.ones_like(length) << (length - 2)
    return (exponential * reciprocal + half >> (length - 1)).clamp(0, 32767).to(torch.int32)


def _in_steps(x: Tensor, scale: float, largest_shift: int) -> Tensor:
    """Inputs in steps of `1 / (3 * 2**12)`; scales of `2**-12` or little more need no rounding."""
    exponent = round(math.log2(scale))
    exact = abs(math.log2(scale) - exponent) < 1e-3
    if exact and 0 <= exponent + 12 <= largest_shift:
        return x.long() * (3 << (exponent + 12))
    factor, shift = scale * 4096 * 3, 0
    while factor <= 32767 / 2 and shift <= 30:
        factor, shift = factor * 2, shift + 1
    return low_bits(x.long() * int(factor) + (1 << shift >> 1)) >> shift


def _on_the_right(steps: Tensor, bits: int, end: int) -> Tensor:
    """The sigmoid table at steps that are not negative, `bits` of them between two entries."""
    x = torch.arange(256, dtype=torch.float64, device=steps.device) / 24
    f = torch.sigmoid(x)
    bend = f * (1 - f) * (1 - 2 * f)
    table = torch.floor((f - bend / (16 * 24**2)) * 2**16 + 0.5).long()
    table[-1] = 65535
    index = steps >> bits
    first, second = (table[(index + i).clamp(max=255)] for i in (0, 1))
    between = (first << bits) + (steps & (1 << bits) - 1) * (second - first)
    return torch.where(index >= 255, end, between)


def _table(function: Function, low: Tensor, high: Tensor, scale: Tensor) -> Tensor:
    per_unit = 65536 / (scale * 32767 - scale * -32768)
    step = (high - low) / 512
    at = low + torch.arange(513, dtype=low.dtype) * step
    value = function(at) * per_unit
    middle = function(at[:-1] + step / 2) * per_unit
    chord = _away((value[1:] + _away(value[:-1])) / 2)
    table = _away(value)
    table[:-1] -= _away((chord - _away(middle)) / 2)
    table[-1] = _away(function(high) * per_unit)
    return table.clamp(-32768, 32767).long()


def _look_up(x: Tensor, table: Tensor) -> Tensor:
    table = table.to(x.device)
    index, offset = 256 + (x.long() >> 7), x & 127
    slope = _in_16_bits(table[index + 1] - table[index])
    return _in_16_bits(table[index] + (slope * offset + 64 >> 7))


def _in_16_bits(x: Tensor) -> Tensor:
    return (x + 2**15 & 2**16 - 1) - 2**15


def _away(x: Tensor) -> Tensor:
    """Nearest integers in the type of `x`, halves away from zero."""
    return torch.copysign(torch.floor(x.double().abs() + 0.5), x.double()).to(x.dtype)
