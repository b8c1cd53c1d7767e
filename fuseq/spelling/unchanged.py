"""Calls that leave a value as it is, at inference."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fuseq.build import Builder, Rule, Value
from fuseq.spelling.registry import spelled

aten = torch.ops.aten


@spelled(
    torch.clone, torch.detach, "clone", "contiguous", "detach", "requires_grad_", "cpu",
    aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default,
    aten.lift_fresh_copy.default,
)  # fmt: skip
def identity(build: Builder, x: Value, *_: Any, **__: Any) -> Value:
    return x


@spelled(
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    torch.dropout, torch.dropout_, torch.feature_dropout, torch.alpha_dropout,
    aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
)  # fmt: skip
def dropout(build: Builder, x: Value, *_: Any, **__: Any) -> Value:
    # Containers are recorded in training mode, so `training` says nothing here. One that drops in
    # eval too is found when the program is compared with the model.
    return x


@spelled(aten.native_dropout.default)
def native_dropout(build: Builder, x: Value, *_: Any) -> Value:
    return (x, None)


@spelled("to", "type", "type_as", aten._to_copy.default, aten.to.dtype, aten.type_as.default)
def convert(build: Builder, x: Value, *args: Any, **kwargs: Any) -> Value:
    asked = [a.dtype if isinstance(a, Tensor) else a
             for a in map(build.example, (*args, *kwargs.values()))]  # fmt: skip
    own = build.example(x).dtype
    dtype = next((a for a in asked if isinstance(a, torch.dtype)), own)
    if own.is_floating_point and dtype.is_floating_point and own != torch.float64:
        # A program has one precision. What a float32 model computes in less is computed in float32.
        if torch.finfo(dtype).eps > torch.finfo(own).eps:
            build.narrowed.add(dtype)
        return x
    return x if dtype == own else build.foreign(aten._to_copy.default, x, dtype=dtype)


def _named(dtype: torch.dtype) -> Rule:
    return lambda build, x: convert(build, x, dtype)


for name, dtype in (
    ("float", torch.float32), ("double", torch.float64), ("half", torch.float16),
    ("bfloat16", torch.bfloat16), ("int", torch.int32), ("long", torch.int64),
    ("bool", torch.bool), ("byte", torch.uint8),
):  # fmt: skip
    spelled(name)(_named(dtype))


@spelled(torch._assert)
def assertion(build: Builder, condition: Value, message: str = "") -> Value:
    """A check the model makes of its sizes: made once, while recording."""
    if not build.example(condition):
        raise ValueError(f"the model's own assertion fails: {message}")
    return None
