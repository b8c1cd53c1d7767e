"""Better integers for the layers of a quantized program, one after the other.

A layer of the float program computes y = f(W x + b), the same layer in integers

    y^ = clamp(s_y (rint(s_x s_w / s_y sum_k w_k x^_k + ...)))

from an input x^ that carries the errors of the layers before it. Layers are therefore refined in
the order in which they run: a study sees, batch by batch, the integers x^ and the float output
W x + b, and proposes other integers for the weight or the bias. Whatever it proposes, an output
channel keeps its old ones unless its squared error over all batches

    sum (y^ - clamp(W x + b))^2,      clamp to what the output grid can hold,

falls. (That clamp is also an absorbed activation that cuts: its grid ends there. Of an absorbed
activation f that does more, f(W x + b) stands in place of W x + b.)
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from fuseq import ops
from fuseq.errors import FuseqError
from fuseq.level_sweep import LevelSweep, levels
from fuseq.program import Program
from fuseq.quant.arithmetic import ARITHMETICS
from fuseq.quant.calibrate import batches_of
from fuseq.quant.executor import IntegerInterpreter, Quantized
from fuseq.quant.grid import Grid
from fuseq.quant.table import QuantizationTable


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer and its frozen integers.

    Attributes:
        node: that calls it.
        module: the float layer.
        source: grid of its input.
        weight: int8 `[out, ...]`.
        weight_grid: its grid.
        bias: int32 `[out]` at `scale_x * scale_w`, or None.
        bias_grid: its grid, or None.
    """

    node: fx.Node
    module: nn.Conv2d | nn.Linear
    source: Grid
    weight: Tensor
    weight_grid: Grid
    bias: Tensor | None
    bias_grid: Grid | None

    @property
    def axis(self) -> int:
        """Channel dimension of the output."""
        return 1 if isinstance(self.module, nn.Conv2d) else -1


class Study(ABC):
    """Gathers what one layer meets, and proposes integers for it."""

    @abstractmethod
    def update(self, x: Quantized, y: Tensor) -> None:
        """See one more batch: the integers of the input, and the float output `W x + b`."""

    @abstractmethod
    def proposal(self) -> Tensor:
        """Integers of the shape and dtype of those in the table."""


@dataclass(frozen=True)
class Refined:
    """What became of one layer.

    Attributes:
        layer: name of its node.
        channels: output channels that have new integers.
        noise_before: squared error of its output over the square of the float output, over all
            batches, from the input that it had when its turn came.
        noise_after: the same with the new integers.
    """

    layer: str
    channels: int
    noise_before: float
    noise_after: float


def refine(
    program: Program,
    parameter: Literal["weight", "bias"],
    study: Callable[[Layer], Study],
    data: Iterable[Any],
    progress: Callable[[int], None] | None = None,
) -> tuple[QuantizationTable, list[Refined]]:
    """Refine every integer convolution and linear layer of a program.

    Args:
        program: quantized; stays as it is.
        parameter: what to refine, in layers that have it.
        study: starts the study of a layer.
        data: batches of inputs, read once and kept; their values too, as far as there is room.
        progress: called with the number of batches done so far, twice over all levels of layers.

    Returns:
        A table with the new integers, and what became of each layer.

    Raises:
        FuseqError: FQ006 for data that is empty or does not fit.
    """
    assert program.quantization is not None
    batches = list(batches_of(program, data))
    if not batches:
        raise FuseqError(
            "FQ006", "the calibration set is empty", fix="give at least one batch of inputs"
        )
    integers = dict(program.quantization.integers)
    table = dataclasses.replace(program.quantization, integers=integers)
    layers = [node for node in program.graph.nodes if _has(program, table, node, parameter)]
    sweep = LevelSweep(_BothInterpreter(program, table), layers, batches)
    done, found = 0, []

    def sights(level: list[fx.Node]) -> Iterator[tuple[fx.Node, Quantized, Tensor]]:
        nonlocal done
        for values in sweep.batches():
            for node in level:
                given: _Both = values[node.all_input_nodes[0]]
                yield node, given.integer, program.get(node)(given.real)
            done += 1
            if progress:
                progress(done)

    with torch.no_grad():
        for level in levels(layers, program.graph):
            studies = {node: study(_layer(program, table, node)) for node in level}
            for node, x, y in sights(level):
                studies[node].update(x, y)
            trials = {
                node: _Trial(program, table, node, parameter, its.proposal())
                for node, its in studies.items()
            }
            for node, x, y in sights(level):
                trials[node].update(x, y)
            for trial in trials.values():
                integers[trial.name] = trial.best()
                found.append(trial.record())
            sweep.waiting -= set(level)
    return table, found


def _has(program: Program, table: QuantizationTable, node: fx.Node, parameter: str) -> bool:
    is_layer = ops.name_of(program, node) in ("conv2d", "linear") and node.name in table.integer
    return is_layer and f"{node.target}.{parameter}" in table.integers


def _layer(program: Program, table: QuantizationTable, node: fx.Node) -> Layer:
    module = program.get(node)
    assert isinstance(module, nn.Conv2d | nn.Linear)
    weight, bias = f"{node.target}.weight", f"{node.target}.bias"
    return Layer(
        node,
        module,
        table.grids[node.all_input_nodes[0].name],
        table.integers[weight],
        table.grids[weight],
        table.integers.get(bias),
        table.grids.get(bias),
    )


@dataclass(frozen=True)
class _Both:
    """A value in the float program and in the integer program (`Quantized` if it has a grid)."""

    real: Any
    integer: Any

    @property
    def nbytes(self) -> int:
        q = self.integer.q if isinstance(self.integer, Quantized) else self.integer
        return sum(x.nbytes for x in (self.real, q) if isinstance(x, Tensor))


class _BothInterpreter(fx.Interpreter):
    """Computes each node in the float program and in the integer program."""

    def __init__(self, program: Program, table: QuantizationTable) -> None:
        super().__init__(program.module)
        self.real = fx.Interpreter(program.module)
        self.integer = _integer_interpreter(program, table)

    def run_node(self, node: fx.Node) -> _Both:
        given = [next(self.args_iter)] if node.op == "placeholder" else []
        self.real.args_iter, self.integer.args_iter = iter(given), iter(given)
        self.real.env = {n: self.env[n].real for n in node.all_input_nodes}
        self.integer.env = {n: self.env[n].integer for n in node.all_input_nodes}
        return _Both(self.real.run_node(node), self.integer.run_node(node))


def _integer_interpreter(program: Program, table: QuantizationTable) -> IntegerInterpreter:
    return IntegerInterpreter(program, table, ARITHMETICS[table.profile.arithmetic])


class _Trial:
    """The present integers of a layer against the proposed ones."""

    def __init__(
        self,
        program: Program,
        table: QuantizationTable,
        node: fx.Node,
        parameter: str,
        proposal: Tensor,
    ) -> None:
        self.node, self.name = node, f"{node.target}.{parameter}"
        self.choices = (table.integers[self.name], proposal)
        self.grid = table.grids[table.absorbed.get(node.name, node.name)]
        self.axis = _layer(program, table, node).axis
        self.runs = [
            _integer_interpreter(
                program, dataclasses.replace(table, integers={**table.integers, self.name: choice})
            )
            for choice in self.choices
        ]
        self.noise = torch.zeros(2, len(self.choices[0]), dtype=torch.float64)
        self.power = torch.zeros(len(self.choices[0]), dtype=torch.float64)

    def update(self, x: Quantized, y: Tensor) -> None:
        scale, zero_point = self.grid.scale.double(), self.grid.zero_point
        limits = self.runs[0].cut_to(self.node) or (self.grid.qmin, self.grid.qmax)
        ends = [scale * (q - zero_point) for q in limits]
        activation = self.runs[0].on_accumulator(self.node)
        wanted = (y if activation is None else activation(y)).double().clamp(*ends)
        self.power += _squares(wanted, self.axis)
        for noise, run in zip(self.noise, self.runs, strict=True):
            run.env = {self.node.all_input_nodes[0]: x}
            actual = scale * (run.run_node(self.node).q - zero_point)
            noise += _squares(actual - wanted, self.axis)

    def best(self) -> Tensor:
        """Integers of each output channel from the better choice; the present ones of two equal."""
        present, proposed = self.choices
        better = self.noise[1] < self.noise[0]
        return torch.where(better.reshape(-1, *[1] * (present.dim() - 1)), proposed, present)

    def record(self) -> Refined:
        changed = (self.best() != self.choices[0]).flatten().reshape(len(self.power), -1).any(1)
        power = float(self.power.sum()) or 1.0
        before, after = float(self.noise[0].sum()), float(self.noise.amin(0).sum())
        return Refined(self.node.name, int(changed.sum()), before / power, after / power)


def _squares(values: Tensor, axis: int) -> Tensor:
    """Sum of squares over every other dimension."""
    return values.square().movedim(axis, 0).flatten(1).sum(1)
