"""A `Writer` of random graphs: it writes lines and runs each, so that shapes are known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from tests.fuzz.graphs import NAMES

MOST_CHANNELS = 24
MOST_ELEMENTS = 30_000


class UnfitError(Exception):
    """A production does not apply to a value."""


@dataclass(frozen=True)
class Value:
    name: str
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        return self.shape[1]


@dataclass
class Writer:
    """What is written so far, and a source of random choices."""

    random: random.Random
    layers: list[tuple[str, str]] = field(default_factory=list)
    lines: list[tuple[str, str]] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    attributes: SimpleNamespace = field(default_factory=SimpleNamespace)

    def input(self, shape: tuple[int, ...]) -> Value:
        value = Value(f"x{len(self.values)}", shape)
        self.values.append(value)
        self.tensors[value.name] = torch.randn(shape)
        return value

    def layer(self, code: str) -> str:
        name = f"m{len(self.layers)}"
        layer = eval(code, dict(NAMES))
        setattr(self.attributes, name, layer.eval() if isinstance(layer, nn.Module) else layer)
        self.layers.append((name, code))
        return f"self.{name}"

    def line(self, expression: str) -> Value:
        names = {**NAMES, **self.tensors, "self": self.attributes}
        with torch.no_grad():
            tensor = eval(expression, names)
        wide = tensor.dim() == 4 and tensor.shape[1] > MOST_CHANNELS
        if wide or not 0 < tensor.numel() <= MOST_ELEMENTS:
            raise UnfitError
        name = f"v{len(self.lines)}"
        self.lines.append((name, expression))
        self.tensors[name] = tensor
        return Value(name, tuple(tensor.shape))

    def apply(self, layer: str, x: Value) -> Value:
        return self.line(f"{self.layer(layer)}({x.name})")

    def attempt(self, production: Production, x: Value) -> Value | None:
        lengths = len(self.layers), len(self.lines)
        try:
            return production(self, x)
        except (UnfitError, RuntimeError, ValueError):
            del self.layers[lengths[0] :], self.lines[lengths[1] :]
            return None

    # --- draws ---

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def integer(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def groups(self, inputs: int, outputs: int) -> int:
        common = math.gcd(inputs, outputs)
        return self.random.choice([1, 1, *(g for g in range(1, common + 1) if common % g == 0)])

    def channels(self, inputs: int) -> int:
        return self.random.choice([inputs, inputs, 2 * inputs, self.integer(1, 12)])


Production = Callable[[Writer, Value], Value]
"""Writes lines that compute a new value from one that is there."""
