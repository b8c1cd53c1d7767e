"""Example inputs: one tensor, several, or several by the name of their argument."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from torch import Tensor, nn

from fuseq.errors import FuseqError
from fuseq.plugins import did_you_mean

ExampleInputs: TypeAlias = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""A tensor, one per argument of `forward`, or some by name."""


def as_tuple(model: nn.Module, given: ExampleInputs) -> tuple[Tensor, ...]:
    """Example inputs in the order of the arguments of `forward`.

    Raises:
        FuseqError: FQ005 for none, for something else than tensors, and for unknown names.
    """
    values: tuple[Tensor, ...]
    if isinstance(given, Tensor):
        values = (given,)
    else:
        values = tuple(given.values() if isinstance(given, Mapping) else given)
    if not values or not all(isinstance(x, Tensor) for x in values):
        raise FuseqError(
            "FQ005", "example inputs must be tensors", fix="pass a tensor or a tuple of tensors"
        )
    return in_order(model, given) if isinstance(given, Mapping) else values


def in_order(model: nn.Module, values: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Inputs by name, or by position where the name is a number, as arguments of `forward`."""
    names = list(inspect.signature(model.forward).parameters)
    place = {name: index for index, name in enumerate(names)}
    place |= {key: int(key) for key in values if key.isdecimal()}
    unknown = [key for key in values if key not in place]
    if unknown or sorted(place[key] for key in values) != list(range(len(values))):
        raise FuseqError(
            "FQ005",
            f"the example inputs {', '.join(values)} do not fit forward({', '.join(names)})",
            fix=(did_you_mean(unknown[0], names) if unknown else None)
            or "give the first arguments of forward, each once",
        )
    return tuple(values[key] for key in sorted(values, key=place.__getitem__))
