"""Tensors made from sizes: constants where the sizes are the model's, else with a stated dtype.

What is made without a dtype has torch's default. A twin of another precision must find it stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fuseq.build import Builder, Rule, Value, mentions_node
from fuseq.spelling.registry import sequence, spelled

aten = torch.ops.aten


def full(build: Builder, size: Sequence[Value], value: Any, dtype: Any) -> Value:
    """A tensor of one value."""
    if mentions_node((size, value)):
        return build.foreign(aten.full.default, list(size), value, dtype=dtype)
    return torch.full(tuple(size), value, dtype=dtype)


def _of_size(value: float) -> Rule:
    def rule(build: Builder, *size: Any, dtype: Any = None, **_: Any) -> Value:
        return full(build, sequence(size), value, dtype or torch.get_default_dtype())

    return rule


def _like(value: float) -> Rule:
    def rule(build: Builder, x: Value, *, dtype: Any = None, **_: Any) -> Value:
        return full(build, build.sizes(x), value, dtype or build.example(x).dtype)

    return rule


def _new(value: float) -> Rule:
    def rule(build: Builder, x: Value, *size: Any, dtype: Any = None, **_: Any) -> Value:
        return full(build, sequence(size), value, dtype or build.example(x).dtype)

    return rule


for number, name in ((0, "zeros"), (1, "ones")):
    spelled(getattr(torch, name), getattr(aten, name).default)(_of_size(number))
    spelled(getattr(torch, f"{name}_like"), getattr(aten, f"{name}_like").default)(_like(number))
    spelled(f"new_{name}", getattr(aten, f"new_{name}").default)(_new(number))


@spelled(torch.full, aten.full.default)
def of_value(
    build: Builder, size: Sequence[Value], fill_value: Any, *, dtype: Any = None, **_: Any
) -> Value:
    if dtype is None and isinstance(fill_value, float):
        dtype = torch.get_default_dtype()
    return full(build, size, fill_value, dtype)


@spelled(torch.full_like, aten.full_like.default)
def like_with_value(
    build: Builder, x: Value, fill_value: Any, *, dtype: Any = None, **_: Any
) -> Value:
    return full(build, build.sizes(x), fill_value, dtype or build.example(x).dtype)


@spelled("new_full", aten.new_full.default)
def new_with_value(
    build: Builder, x: Value, size: Sequence[Value], fill_value: Any, *, dtype: Any = None, **_: Any
) -> Value:
    return full(build, size, fill_value, dtype or build.example(x).dtype)


@spelled(aten.fill.Scalar, aten.fill.Tensor)
def filled(build: Builder, x: Value, value: Any) -> Value:
    if isinstance(value, Tensor):
        value = value.item()
    if not isinstance(value, int | float):
        return build.foreign(aten.fill.Tensor, x, value)
    return full(build, build.sizes(x), value, build.example(x).dtype)
