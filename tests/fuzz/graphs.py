"""Random networks as text: a few lines of PyTorch that can be printed, pasted and made smaller."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

NAMES: dict[str, Any] = {"torch": torch, "nn": nn, "F": nn.functional}
"""What the text of a graph may name."""


@dataclass(frozen=True)
class Graph:
    """One network.

    Attributes:
        seed: of its weights.
        inputs: shape of each input `x0`, `x1`, ...
        layers: attribute name -> constructor, in order.
        lines: value name -> expression, in order.
        outputs: names of values.
    """

    seed: int
    inputs: tuple[tuple[int, ...], ...]
    layers: tuple[tuple[str, str], ...]
    lines: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...]

    def source(self) -> str:
        """A module class, as somebody would have written it."""
        names = ", ".join(f"x{i}" for i in range(len(self.inputs)))
        used = [layer for layer in self.layers if any(f"self.{layer[0]}(" in e or
                re.search(rf"self\.{layer[0]}\b", e) for _, e in self.lines)]  # fmt: skip
        return "\n".join(
            [
                "class Graph(nn.Module):",
                "    def __init__(self):",
                "        super().__init__()",
                *(f"        self.{name} = {code}" for name, code in used),
                "",
                f"    def forward(self, {names}):",
                *(f"        {name} = {code}" for name, code in self.lines),
                f"        return {', '.join(self.outputs)}",
                "",
            ]
        )

    def build(self) -> nn.Module:
        """The module, in float64 and eval, with weights and statistics as after training."""
        names = dict(NAMES)
        exec(compile(self.source(), f"graph {self.seed}", "exec"), names)
        torch.manual_seed(self.seed)
        model: nn.Module = names["Graph"]()
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                    assert module.running_mean is not None
                    assert module.running_var is not None
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2.0)
                    module.weight.normal_()
                    module.bias.normal_()
        return model.double().eval().requires_grad_(False)

    def example(self, height: int | None = None, width: int | None = None) -> tuple[Tensor, ...]:
        """Float64 inputs, of the shapes it was made for or with another height and width."""
        generator = torch.Generator().manual_seed(self.seed)
        return tuple(
            torch.randn(
                *shape[:2], height or shape[2], width or shape[3],
                generator=generator, dtype=torch.float64,
            )
            for shape in self.inputs
        )  # fmt: skip

    def __str__(self) -> str:
        shapes = ", ".join(f"torch.randn{shape}.double()" for shape in self.inputs)
        return f"{self.source()}\n# seed {self.seed}; inputs: {shapes}\n"


def smaller(graph: Graph) -> Iterator[Graph]:
    """Graphs with one output, line or operand less, which may or may not run."""
    if len(graph.outputs) > 1:
        for output in graph.outputs:
            yield replace(graph, outputs=(output,))
    for output in graph.outputs:
        for name in re.findall(r"\b[xv]\d+\b", dict(graph.lines).get(output, "")):
            yield live(replace(graph, outputs=(name,)))
    for index in reversed(range(len(graph.lines))):
        name, expression = graph.lines[index]
        for operand in dict.fromkeys(re.findall(r"\b[xv]\d+\b", expression)):
            bypassed = tuple(
                (later, re.sub(rf"\b{name}\b", operand, code))
                for later, code in graph.lines[index + 1 :]
            )
            outputs = tuple(operand if output == name else output for output in graph.outputs)
            yield live(replace(graph, lines=graph.lines[:index] + bypassed, outputs=outputs))


def live(graph: Graph) -> Graph:
    """A graph without the lines that no output needs."""
    needed, kept = set(graph.outputs), []
    for name, expression in reversed(graph.lines):
        if name in needed:
            kept.append((name, expression))
            needed.update(re.findall(r"\b[xv]\d+\b", expression))
    return replace(graph, lines=tuple(reversed(kept)))


def shrunk(graph: Graph, fails: Callable[[Graph], bool]) -> Graph:
    """The smallest graph reached that still fails."""
    while True:
        failing = next((g for g in smaller(graph) if g != graph and fails(g)), None)
        if failing is None:
            return graph
        graph = failing
