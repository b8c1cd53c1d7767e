"""Operands of canonical operations: data or constant, and a constant as one number a channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fuseq import ops
from fuseq.affine.refusal import RefusedError
from fuseq.program import Program

expand = torch.ops.aten.expand.default


def constant_of(value: Any) -> fx.Node | None:
    """The `get_attr` node behind an operand, repeated over positions or not; None for data."""
    if not isinstance(value, fx.Node):
        return None
    if value.op == "get_attr":
        return value
    return constant_of(value.args[0]) if value.target is expand else None


def is_data(value: Any) -> bool:
    """Whether an operand depends on the values of the input: no constant, no size."""
    return (
        isinstance(value, fx.Node)
        and constant_of(value) is None
        and value.target not in ops.SHAPE_ARITHMETIC
    )


def attributes(node: fx.Node, *names: str) -> list[Any]:
    """Attributes of a node by name."""
    return [node.kwargs[name] for name in names]


def per_channel(
    program: Program,
    value: fx.node.Argument,
    channels: int,
    *,
    rank: int = 4,
    dim: int = 1,
    repeated: bool = False,
) -> Tensor:
    """A constant operand as one number a channel: float64 `(channels,)`.

    Args:
        program: that holds the constant.
        value: a number or a `get_attr` node.
        channels: how many numbers to give.
        rank: of the tensor that the constant meets.
        dim: of that tensor that holds the channels; negative counts from the end.
        repeated: take a constant that spells the same number at every position.

    Raises:
        RefusedError: layout if the constant varies over the map, adds channels or is a size.
    """
    named = constant_of(value)
    if named is None:
        if not isinstance(value, float | int):
            raise RefusedError("layout", "a factor that is a size of the input", "use a number")
        return torch.full((channels,), float(value), dtype=torch.float64)
    constant = program.constant(named).detach().double()
    if constant.dim() <= rank:
        aligned = constant.view((1,) * (rank - constant.dim()) + tuple(constant.shape))
        flat = aligned.movedim(dim, 0).flatten(1)
        same = bool((flat == flat[:, :1]).all()) if repeated else flat.shape[1] == 1
        if len(flat) in (1, channels) and same:
            return flat[:, 0].expand(channels)
    raise RefusedError(
        "layout",
        f"a constant of shape {tuple(constant.shape)} is not one number a channel",
        "use a constant of shape (channels, 1, 1)",
    )
