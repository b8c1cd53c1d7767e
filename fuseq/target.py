"""A target: the user's model as it is named on the command line, with its example inputs.

`model.py[:factory]` is a file, `package.module:factory` something importable; the factory is called
with the `--arg`s and returns the model.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fuseq.arguments import in_order
from fuseq.errors import FuseqError, first_line
from fuseq.user_code import load_function, missing, user_code
from fuseq.weights import load_weights


@dataclass(frozen=True)
class Target:
    """A loaded target.

    Attributes:
        name: as the user spelled it.
        model: what the factory returned, with the weights asked for.
        example_inputs: one tensor per argument of `forward`.
        module: where `calibration_data`, `preprocess` and `evaluate` are looked up.
    """

    name: str
    model: nn.Module
    example_inputs: tuple[Tensor, ...]
    module: ModuleType

    def function(self, name: str) -> Callable[..., Any] | None:
        """A function of the target's module; None if it has none of that name."""
        found = getattr(self.module, name, None)
        return found if callable(found) else None


def load_target(
    name: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    inputs: Sequence[str] = (),
    weights: Path | None = None,
) -> Target:
    """Run the user's factory.

    Args:
        name: `model.py[:factory]` (by default `get_model`) or `package.module:factory`.
        arguments: keyword arguments of the factory.
        inputs: shapes of the example inputs, `1x3x224x224` or `name:1x3x224x224`, instead of the
            module's `example_inputs()`; filled with uniform random values in 0..1.
        weights: a `.safetensors` file, or a `.pt` one holding tensors only.

    Raises:
        FuseqError: FQ001 to FQ005, and FQ007 for an argument the factory does not have.
    """
    module, factory = load_function(name, "get_model")
    model = _build(name, module, factory, arguments or {})
    if weights is not None:
        load_weights(model, weights)
    return Target(name, model, _example_inputs(name, model, module, inputs), module)


def parse_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments from `key=value`; a value is a Python literal, or else a string.

    Raises:
        FuseqError: FQ007 for a pair without `=`.
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise FuseqError("FQ007", f"cannot read --arg {pair}", fix="--arg width=32")
        try:
            arguments[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            arguments[key] = text
    return arguments


def _build(name: str, module: ModuleType, factory: Any, arguments: Mapping[str, Any]) -> nn.Module:
    if isinstance(factory, nn.Module) and not arguments:
        return factory
    try:
        signature = inspect.signature(factory)
        signature.bind(**arguments)
    except ValueError as error:  # a class or function written in C
        raise FuseqError(
            "FQ003",
            f"'{name}' is no factory",
            why=str(error),
            fix="name a Python function or class",
        ) from error
    except TypeError as error:
        raise FuseqError(
            "FQ007",
            f"the factory '{name}' does not take these arguments: {error}",
            why=f"its signature is {signature}",
            fix="--arg name=value, once for each argument",
        ) from error
    with user_code(f"the factory '{name}'", module):
        model = factory(**arguments)
    if not isinstance(model, nn.Module):
        raise FuseqError(
            "FQ003",
            f"the factory '{name}' returned a {type(model).__name__}",
            fix="return a torch.nn.Module",
        )
    return model


def _example_inputs(
    name: str, model: nn.Module, module: ModuleType, shapes: Sequence[str]
) -> tuple[Tensor, ...]:
    if shapes:
        generator = torch.Generator().manual_seed(0)
        named = [parse_shape(text, index) for index, text in enumerate(shapes)]
        parsed = dict(named)
        if len(parsed) < len(named):
            raise FuseqError(
                "FQ005",
                f"--input names one input twice: {', '.join(shapes)}",
                fix="give each input once: --input x:1x3x64x64 --input y:1x1x64x64",
            )
        try:
            values = {key: torch.rand(shape, generator=generator) for key, shape in parsed.items()}
        except (RuntimeError, TypeError) as error:
            raise FuseqError(
                "FQ005",
                f"cannot make inputs of {', '.join(shapes)}",
                why=first_line(error),
                fix="a shape whose values fit into memory: --input 1x3x224x224",
            ) from error
        return in_order(model, values)
    function = getattr(module, "example_inputs", None)
    if function is None:
        raise missing(
            "FQ005", f"'{name}' has no example inputs", "--input 1x3x224x224", "example_inputs"
        )
    with user_code("example_inputs()", module):
        value = function()
    if isinstance(value, Tensor):
        return (value,)
    if isinstance(value, Mapping) and all(isinstance(x, Tensor) for x in value.values()):
        return in_order(model, value)
    if isinstance(value, Sequence) and value and all(isinstance(x, Tensor) for x in value):
        return tuple(value)
    raise FuseqError(
        "FQ005",
        f"example_inputs() returned {type(value).__name__} with something else than tensors",
        fix="return a tensor, a tuple of tensors, or a dict of tensors by argument of forward",
    )


def parse_shape(text: str, index: int) -> tuple[str, tuple[int, ...]]:
    """Name and sizes from `x:1x3x224x224`; the name is `index` where none is given.

    Raises:
        FuseqError: FQ005 for what is no shape.
    """
    name, _, sizes = text.rpartition(":")
    parts = sizes.split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise FuseqError("FQ005", f"cannot read --input {text}", fix="--input 1x3x224x224")
    return name or str(index), tuple(map(int, parts))
