"""Convolutions, linear layers and PReLU: calls of a module that holds its parameters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuseq.build import Builder, Value
from fuseq.spelling.registry import pair, spelled
from fuseq.spelling.selecting import pad

aten = torch.ops.aten


@spelled(F.conv2d, torch.conv2d, aten.conv2d.default, aten.conv2d.padding)
def conv2d(
    build: Builder, x: Value, weight: Value, bias: Value = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Value:  # fmt: skip
    if not isinstance(weight, Tensor) or len(build.shape(x)) != 4:
        return build.foreign(
            aten.conv2d.padding if isinstance(padding, str) else aten.conv2d.default, x, weight,
            bias, pair(stride), padding if isinstance(padding, str) else pair(padding),
            pair(dilation), groups,
        )  # fmt: skip
    kernel, dilation = pair(weight.shape[2:]), pair(dilation)
    if padding == "same":
        height, width = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        padding = (height // 2, width // 2)
        if height % 2 or width % 2:
            # What is odd goes after the image.
            x = pad(build, x, (width // 2, -(-width // 2), height // 2, -(-height // 2)))
            padding = 0
    elif padding == "valid":
        padding = 0
    conv = nn.Conv2d(
        weight.shape[1] * groups, weight.shape[0], kernel, pair(stride), pair(padding), dilation,
        groups, bias=bias is not None, device="meta",
    )  # fmt: skip
    return build.module(conv, {"weight": weight, "bias": bias}, x)


@spelled(F.conv_transpose2d, torch.conv_transpose2d, aten.conv_transpose2d.input)
def conv_transpose2d(
    build: Builder, x: Value, weight: Value, bias: Value = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Value:  # fmt: skip
    if not isinstance(weight, Tensor) or len(build.shape(x)) != 4:
        return build.foreign(
            aten.conv_transpose2d.input, x, weight, bias, pair(stride), pair(padding),
            pair(output_padding), groups, pair(dilation),
        )  # fmt: skip
    conv = nn.ConvTranspose2d(
        weight.shape[0], weight.shape[1] * groups, pair(weight.shape[2:]), pair(stride),
        pair(padding), pair(output_padding), groups, bias is not None, pair(dilation),
        device="meta",
    )  # fmt: skip
    return build.module(conv, {"weight": weight, "bias": bias}, x)


@spelled(aten.convolution.default)
def convolution(
    build: Builder, x: Value, weight: Value, bias: Value, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> Value:  # fmt: skip
    if transposed:
        return conv_transpose2d(
            build, x, weight, bias, stride, padding, output_padding, groups, dilation
        )
    return conv2d(build, x, weight, bias, stride, padding, dilation, groups)


@spelled(F.linear, aten.linear.default)
def linear(build: Builder, x: Value, weight: Value, bias: Value = None) -> Value:
    if not isinstance(weight, Tensor):
        return build.foreign(aten.linear.default, x, weight, bias)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    return build.module(layer, {"weight": weight, "bias": bias}, x)


@spelled(torch.addmm, aten.addmm.default)
def addmm(
    build: Builder, bias: Value, x: Value, weight: Value, beta: float = 1, alpha: float = 1
) -> Value:
    if isinstance(weight, Tensor) and isinstance(bias, Tensor) and beta == 1 and alpha == 1:
        return linear(build, x, weight.t(), bias)
    return build.foreign(aten.addmm.default, bias, x, weight, beta=beta, alpha=alpha)


@spelled(F.prelu, torch.prelu, aten.prelu.default, aten._prelu_kernel.default)
def prelu(build: Builder, x: Value, weight: Value) -> Value:
    if not isinstance(weight, Tensor):
        return build.foreign(aten.prelu.default, x, weight)
    layer = nn.PReLU(weight.numel(), device="meta")
    return build.module(layer, {"weight": weight.reshape(-1)}, x)
