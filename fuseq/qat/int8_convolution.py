"""Exact sums by the int8 instructions of a CPU, in a third of the time that float32 takes.

x86-64 with VNNI adds products of uint8 and int8 up in int32, where CPUs without it saturate 16 bits
on the way; oneDNN has the convolution, and gives the sums in float32. They are those of a float32
convolution of the same integers wherever that is exact, and the input takes a byte an element
until the backward pass.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from fuseq.quant.arithmetic.base import Pair

PIXELS, CHANNELS = 1024, 16
"""Of a batch, from which on an int8 convolution is faster: its weight is packed at every step.

With one channel and a padding as high as the kernel, oneDNN 3.12 gives wrong sums.
"""


@functools.cache
def available() -> bool:
    """Whether this CPU has the instructions, this torch the convolution, and oneDNN uses them.

    An `ONEDNN_MAX_CPU_ISA` keeps it from that: the largest products, whose sums of two 16 bits do
    not hold, tell.
    """
    has: Mapping[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    if not (has.get("avx512_vnni") or has.get("avx_vnni")):
        return False
    if not hasattr(torch.ops.onednn, "qconv2d_pointwise"):
        return False
    q = torch.full((1, 32, 8, 8), 255, dtype=torch.uint8, device="cpu")
    weight = torch.full((32, 32, 3, 3), 127, device="cpu")
    total = convolve(q, 0, weight, None, (1, 1), (0, 0), (1, 1))
    return bool((total == 32 * 9 * 255 * 127).all())


def is_faster(x: Tensor, groups: int) -> bool:
    """Whether to convolve this input `[N, C, H, W]` so."""
    large = x.shape[1] >= CHANNELS and x.numel() >= x.shape[1] * PIXELS
    return x.device.type == "cpu" and groups == 1 and large and available()


def to_bytes(x: Tensor, smallest: int) -> Tensor:
    """uint8 of centered integers.

    Args:
        x: float32, from `smallest` to `smallest + 255`.
        smallest: what is a zero byte.
    """
    # By way of int32, since torch converts a float to uint8 one by one.
    return (x - smallest if smallest else x).to(torch.int32).to(torch.uint8)


def from_bytes(q: Tensor, smallest: int) -> Tensor:
    """Centered integers again, float32."""
    x = q.float()
    return x.add_(smallest) if smallest else x


def convolve(
    q: Tensor,
    smallest: int,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    """Convolve centered integers, padded with zero.

    Args:
        q: `[N, C, H, W]` as `to_bytes` gives them.
        smallest: as `to_bytes` took it, at most 0.
        weight: integers `[O, C, kh, kw]` from -127 to 127, in any dtype.
        bias: integers `[O]`, or None, in any dtype.
        stride: as `torch.nn.functional.conv2d`.
        padding: as `torch.nn.functional.conv2d`.
        dilation: as `torch.nn.functional.conv2d`.

    Returns:
        Sums in float32.
    """
    geometry, onednn = (stride, padding, dilation, 1), torch.ops.onednn
    ones = torch.ones(len(weight), dtype=torch.float32, device="cpu")
    zeros = torch.zeros_like(ones, dtype=torch.int32)
    packed = onednn.qconv_prepack(weight.to(torch.int8), ones, 1.0, -smallest, *geometry, q.shape)
    total: Tensor = onednn.qconv2d_pointwise(
        q, 1.0, -smallest, packed, ones, zeros, None if bias is None else bias.float(), *geometry,
        1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    return total
