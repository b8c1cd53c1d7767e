"""The one definition of a quantization grid.

A grid maps integers to reals and back:

    real = scale * (q - zero_point)                                  (dequantize)
    q    = clamp(rint(real / scale) + zero_point, qmin, qmax)        (quantize)

with `rint` rounding halves to even, all in float32 (Jacob et al., CVPR 2018, eq. 1; ONNX
QuantizeLinear). Weights are symmetric int8 in [-127, 127], one scale per output channel; the
unused -128 keeps the grid symmetric. Activations are affine, one scale per tensor; their range
always holds zero, so that padding and ReLU are exact. Biases are int32 at
`float32(scale_x * scale_w)`, zero point 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LIMITS: dict[str, tuple[int, int]] = {
    "uint8": (0, 255),
    "int8": (-128, 127),
    "uint16": (0, 65535),
    "int16": (-32768, 32767),
    "int32": (-(2**31), 2**31 - 1),
}

SMALLEST_SCALE = 2.0**-60
"""Scale of a value that is always zero: any positive float32 does, and a product of two must not
underflow."""

LARGEST_BIAS = 2**30
"""Integers a bias may reach, with room in int32 for the accumulator it is added to."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A quantization grid.

    Attributes:
        scale: float32, positive; 0-d, or `[channels]` along `axis`.
        zero_point: int32 of the same shape, within the dtype's limits.
        dtype: a key of `LIMITS`.
        axis: channel dimension of a per-channel grid, None for one grid per tensor.
    """

    scale: Tensor
    zero_point: Tensor
    dtype: str
    axis: int | None = None

    @property
    def qmin(self) -> int:
        """Smallest integer of the dtype."""
        return LIMITS[self.dtype][0]

    @property
    def qmax(self) -> int:
        """Largest integer of the dtype."""
        return LIMITS[self.dtype][1]

    def __eq__(self, other: object) -> bool:
        """Equal bit for bit."""
        return self is other or (
            isinstance(other, Grid)
            and (self.dtype, self.axis) == (other.dtype, other.axis)
            and torch.equal(self.scale, other.scale)
            and torch.equal(self.zero_point, other.zero_point)
        )

    def __hash__(self) -> int:
        """Consistent with equality."""
        return hash((self.dtype, self.axis, tuple(self.scale.reshape(-1).tolist())))

    def __str__(self) -> str:
        """`uint8 scale=0.0123 zero_point=7`, as text forms show it."""
        if self.axis is not None:
            return f"{self.dtype} per-channel[{self.scale.numel()}]"
        return f"{self.dtype} scale={float(self.scale):.6g} zero_point={int(self.zero_point)}"

    def quantize(self, real: Tensor) -> Tensor:
        """Nearest integers, as int32.

        Args:
            real: float tensor.
        """
        scale, zero_point = self._shaped(real)
        return self.saturated(torch.round(real.float() / scale) + zero_point)

    def saturated(self, q: Tensor) -> Tensor:
        """Whole numbers of any dtype cut to the dtype's limits, as int32."""
        return q.clamp(self.qmin, self.qmax).to(torch.int32)

    def dequantize(self, q: Tensor) -> Tensor:
        """Reals of integers, as float32."""
        scale, zero_point = self._shaped(q)
        return (q - zero_point).float() * scale

    def shifted_to(self, dtype: str) -> Grid:
        """The same reals on a dtype of as many bits: zero point and integers are shifted."""
        shift = LIMITS[dtype][0] - self.qmin
        return Grid(self.scale, self.zero_point + shift, dtype, self.axis)

    def repeated(self, times: int) -> Grid:
        """The grid of all groups of a weight whose groups share the scales of one."""
        if times == 1 or self.axis is None:
            return self
        return Grid(self.scale.repeat(times), self.zero_point.repeat(times), self.dtype, self.axis)

    def _shaped(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if self.axis is None:
            return self.scale, self.zero_point
        shape = [1] * like.dim()
        shape[self.axis] = -1
        return self.scale.reshape(shape), self.zero_point.reshape(shape)


def affine_grid(low: float, high: float, dtype: str) -> Grid:
    """Per-tensor grid that covers a range.

    Args:
        low: smallest real; the range is widened to hold zero.
        high: largest real.
        dtype: an 8 or 16 bit key of `LIMITS`.

    Returns:
        The grid with `scale = (high - low) / (qmax - qmin)` and the zero point that puts zero
        exactly on the grid.
    """
    qmin, qmax = LIMITS[dtype]
    low, high = min(low, 0.0), max(high, 0.0)
    scale = torch.tensor(max((high - low) / (qmax - qmin), SMALLEST_SCALE), dtype=torch.float32)
    zero_point = qmin - round(low / float(scale))
    return Grid(scale, torch.tensor(min(max(zero_point, qmin), qmax), dtype=torch.int32), dtype)


def slope_grid(weight: Tensor, dtype: str) -> Grid:
    """Grid of a PReLU's slopes: one for all channels, affine over their own values.

    Args:
        weight: real slopes.
        dtype: an 8 or 16 bit key of `LIMITS`.
    """
    low, high = weight.detach().aminmax()
    return affine_grid(float(low), float(high), dtype)


def centered_grid(low: float, high: float, dtype: str) -> Grid:
    """Per-tensor grid that covers a range, with zero point 0.

    Args:
        low: smallest real.
        high: largest real.
        dtype: a signed key of `LIMITS`.

    Returns:
        The grid with `scale = max(|low|, |high|) / qmax`.
    """
    scale = max(abs(low), abs(high)) / LIMITS[dtype][1]
    return Grid(
        torch.tensor(max(scale, SMALLEST_SCALE), dtype=torch.float32),
        torch.tensor(0, dtype=torch.int32),
        dtype,
    )


def symmetric_grid(
    weight: Tensor, axis: int, bias: Tensor | None = None, input_scale: Tensor | None = None
) -> Grid:
    """Per-channel int8 grid of a weight, zero point 0.

    The scale is `max|w| / 127`, or larger where the bias would not fit int32 at
    `scale_x * scale_w`. That happens only where input or weight are nearly zero throughout (a dead
    channel): a weight of such a channel, times one step of the input, weighs less than `2**-22` of
    its bias.

    Args:
        weight: float tensor.
        axis: output-channel dimension.
        bias: float `[channels]`, or a multiple of that for a weight whose groups share their
            scales; or None.
        input_scale: scale of the layer's input, needed with a bias.
    """
    other = [d for d in range(weight.dim()) if d != axis]
    scale = torch.linalg.vector_norm(weight.detach().float(), math.inf, other) / 127
    if bias is not None and input_scale is not None:
        needed = bias.detach().float().abs() / (input_scale.detach() * LARGEST_BIAS)
        scale = torch.maximum(scale, needed.reshape(-1, len(scale)).amax(0))
    scale = scale.clamp_min(SMALLEST_SCALE)
    return Grid(scale, torch.zeros_like(scale, dtype=torch.int32), "int8", axis)


def quantize_weight(weight: Tensor, grid: Grid) -> Tensor:
    """Integers of a weight, int8, never -128."""
    return grid.quantize(weight).clamp(-127, 127).to(torch.int8)


def bias_grid(input_grid: Grid, weight_grid: Grid, bias: Tensor) -> Grid:
    """Grid of a bias: int32 at `float32(scale_x * scale_w)`, one scale per output channel.

    Args:
        input_grid: of the layer's input.
        weight_grid: of its weight, along output channels; those of one group, if groups share it.
        bias: of shape `[channels]`.
    """
    groups = len(bias) // weight_grid.scale.numel()
    scale = input_grid.scale * weight_grid.repeated(groups).scale
    return Grid(scale, torch.zeros_like(scale, dtype=torch.int32), "int32", 0)


def quantize_bias(bias: Tensor, grid: Grid) -> Tensor:
    """Integers of a bias, int32: rounded in float64, since int32 is wider than float32 is exact."""
    exact = torch.round(bias.double() / grid.scale.double())
    return grid.saturated(exact)


def along(scale: Tensor, like: Tensor, axis: int) -> Tensor:
    """A 0-d or `[C]` tensor shaped to broadcast along one dimension of `like`."""
    if scale.dim() == 0:
        return scale
    shape = [1] * like.dim()
    shape[axis] = -1
    return scale.reshape(shape)
