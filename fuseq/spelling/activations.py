"""Activations: element by element, and softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fuseq.build import Builder, Rule, Value
from fuseq.spelling.arithmetic import mul
from fuseq.spelling.registry import spelled
from fuseq.spelling.selecting import chunk

aten = torch.ops.aten


def _unary(function: Callable[..., Any]) -> Rule:
    def rule(build: Builder, x: Value, inplace: bool = False) -> Value:
        return build.call(function, x)

    return rule


relu = spelled(torch.relu, F.relu, torch.relu_, "relu", "relu_", aten.relu.default)(
    _unary(torch.relu)
)
sigmoid = spelled(torch.sigmoid, torch.sigmoid_, F.sigmoid, "sigmoid", "sigmoid_",
                  aten.sigmoid.default)(_unary(torch.sigmoid))  # fmt: skip
tanh = spelled(torch.tanh, torch.tanh_, F.tanh, "tanh", "tanh_", aten.tanh.default)(
    _unary(torch.tanh)
)
rsqrt = spelled(torch.rsqrt, "rsqrt", aten.rsqrt.default)(_unary(torch.rsqrt))
hardsigmoid = spelled(F.hardsigmoid, aten.hardsigmoid.default)(_unary(F.hardsigmoid))
hardswish = spelled(F.hardswish, aten.hardswish.default)(_unary(F.hardswish))
silu = spelled(F.silu, aten.silu.default)(_unary(F.silu))


@spelled(F.gelu, aten.gelu.default)
def gelu(build: Builder, x: Value, approximate: str = "none") -> Value:
    return build.call(F.gelu, x, approximate=approximate)


@spelled(F.leaky_relu, F.leaky_relu_, aten.leaky_relu.default)
def leaky_relu(
    build: Builder, x: Value, negative_slope: float = 0.01, inplace: bool = False
) -> Value:
    return build.call(F.leaky_relu, x, negative_slope=float(negative_slope))


@spelled(torch.clamp, torch.clamp_, torch.clip, torch.clip_, "clamp", "clamp_", "clip", "clip_",
         aten.clamp.default, aten.clip.default)  # fmt: skip
def clamp(build: Builder, x: Value, min: Any = None, max: Any = None) -> Value:
    if isinstance(min, fx.Node | Tensor) or isinstance(max, fx.Node | Tensor):
        return build.foreign(aten.clamp.Tensor, x, _as_tensor(min), _as_tensor(max))
    if min == 0 and max is None:
        return build.call(torch.relu, x)
    bounds = {
        "min": None if min is None else float(min),
        "max": None if max is None else float(max),
    }
    return build.call(torch.clamp, x, **bounds)


def _as_tensor(bound: Any) -> Value:
    return torch.tensor(bound) if isinstance(bound, int | float) else bound


@spelled(torch.clamp_min, torch.clamp_min_, "clamp_min", "clamp_min_", aten.clamp_min.default)
def clamp_min(build: Builder, x: Value, min: Any) -> Value:
    return clamp(build, x, min)


@spelled(torch.clamp_max, torch.clamp_max_, "clamp_max", "clamp_max_", aten.clamp_max.default)
def clamp_max(build: Builder, x: Value, max: Any) -> Value:
    return clamp(build, x, None, max)


@spelled(F.relu6, aten.relu6.default)
def relu6(build: Builder, x: Value, inplace: bool = False) -> Value:
    return clamp(build, x, 0.0, 6.0)


@spelled(F.hardtanh, F.hardtanh_, aten.hardtanh.default)
def hardtanh(
    build: Builder, x: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Value:
    return clamp(build, x, min_val, max_val)


@spelled(F.softmax, torch.softmax, "softmax", aten.softmax.int, aten._softmax.default)
def softmax(build: Builder, x: Value, dim: int, *_: Any, **__: Any) -> Value:
    return build.call(F.softmax, x, dim=dim % len(build.shape(x)))


@spelled(F.glu, aten.glu.default)
def glu(build: Builder, x: Value, dim: int = -1) -> Value:
    value, gate = chunk(build, x, 2, dim)
    return mul(build, value, sigmoid(build, gate))
