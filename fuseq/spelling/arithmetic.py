"""Arithmetic on tensors, and on the sizes of tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fuseq.build import Builder, Rule, Value
from fuseq.spelling.layers import linear
from fuseq.spelling.registry import spelled

aten = torch.ops.aten


def _binary(function: Callable[..., Any], on_sizes: Callable[..., Any]) -> Rule:
    def rule(build: Builder, a: Value, other: Value, *, alpha: float = 1) -> Value:
        if not (build.is_tensor(a) or build.is_tensor(other)):
            return build.shape_arithmetic(on_sizes, a, other)
        if alpha != 1:
            other = build.call(torch.mul, other, float(alpha))
        if not all(build.example(v).is_floating_point() for v in (a, other) if build.is_tensor(v)):
            return build.foreign(function, a, other)
        a, other = _unexpanded(build, a, other), _unexpanded(build, other, a)
        if function in (torch.add, torch.mul) and not isinstance(a, fx.Node):
            a, other = other, a
        return build.call(function, a, other)

    return rule


def _unexpanded(build: Builder, value: Value, other: Value) -> Value:
    """What `value` was expanded from, if the arithmetic broadcasts it to the same shape."""
    if not (isinstance(value, fx.Node) and value.target is aten.expand.default):
        return value
    broadcast = build.is_tensor(other) and build.shape(other) == build.shape(value)
    return value.args[0] if broadcast else value


add = spelled(
    torch.add, operator.add, operator.iadd, "add", "add_", "__add__", "__radd__", "__iadd__",
    aten.add.Tensor, aten.add.Scalar, aten.add_.Tensor, aten.add_.Scalar,
)(_binary(torch.add, operator.add))  # fmt: skip
sub = spelled(
    torch.sub, operator.sub, operator.isub, torch.subtract, "sub", "sub_", "subtract", "__sub__",
    "__isub__", aten.sub.Tensor, aten.sub.Scalar, aten.sub_.Tensor, aten.subtract.Tensor,
    aten.subtract.Scalar,
)(_binary(torch.sub, operator.sub))  # fmt: skip
mul = spelled(
    torch.mul, operator.mul, operator.imul, torch.multiply, "mul", "mul_", "multiply", "multiply_",
    "__mul__", "__rmul__", "__imul__", aten.mul.Tensor, aten.mul.Scalar, aten.mul_.Tensor,
    aten.mul_.Scalar, aten.multiply.Tensor, aten.multiply.Scalar,
)(_binary(torch.mul, operator.mul))  # fmt: skip
quotient = spelled(
    operator.truediv, operator.itruediv, torch.true_divide, "true_divide", "__truediv__",
    aten.div.Tensor, aten.div.Scalar, aten.div_.Tensor, aten.divide.Tensor, aten.divide.Scalar,
    aten.true_divide.Tensor, aten.true_divide.Scalar,
)(_binary(torch.div, operator.truediv))  # fmt: skip


@spelled(torch.div, torch.divide, "div", "div_", "divide", aten.div.Tensor_mode)
def div(build: Builder, a: Value, other: Value, *, rounding_mode: str | None = None) -> Value:
    if rounding_mode is not None:
        return build.foreign(torch.div, a, other, rounding_mode=rounding_mode)
    return quotient(build, a, other)


@spelled(operator.floordiv, "__floordiv__", torch.floor_divide)
def floordiv(build: Builder, a: Value, other: Value) -> Value:
    if build.is_tensor(a) or build.is_tensor(other):
        return build.foreign(torch.floor_divide, a, other)
    return build.shape_arithmetic(operator.floordiv, a, other)


@spelled(aten.rsub.Scalar, aten.rsub.Tensor, torch.rsub, "__rsub__")
def rsub(build: Builder, a: Value, other: Value, alpha: float = 1) -> Value:
    return sub(build, other, a if alpha == 1 else build.call(torch.mul, a, float(alpha)))


@spelled(torch.reciprocal, "reciprocal", aten.reciprocal.default)
def reciprocal(build: Builder, x: Value) -> Value:
    return quotient(build, 1.0, x)


@spelled(
    torch.neg, torch.negative, operator.neg, "neg", "neg_", "negative", aten.neg.default,
    aten.negative.default,
)  # fmt: skip
def neg(build: Builder, x: Value) -> Value:
    return mul(build, x, -1.0 if build.is_tensor(x) else -1)


@spelled(
    torch.pow, operator.pow, operator.ipow, "pow", "pow_", "__pow__",
    aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.pow.Scalar,
)  # fmt: skip
def power(build: Builder, x: Value, exponent: Value) -> Value:
    if exponent == 1:
        return x
    if exponent == 2 and build.is_tensor(x):
        return mul(build, x, x)
    return build.foreign(operator.pow, x, exponent)


@spelled(torch.square, "square", "square_", aten.square.default)
def square(build: Builder, x: Value) -> Value:
    return mul(build, x, x)


@spelled(
    torch.matmul, operator.matmul, torch.bmm, torch.mm, "matmul", "bmm", "mm", "__matmul__",
    aten.matmul.default, aten.bmm.default, aten.mm.default,
)  # fmt: skip
def matmul(build: Builder, a: Value, other: Value) -> Value:
    if isinstance(other, Tensor) and other.dim() == 2:
        return linear(build, a, other.t())
    return build.call(torch.matmul, a, other)
