"""The training forward: the integer executor, with gradients and with weights that move.

Whatever the executor computes is what is trained, op by op; only what a value on a grid is differs
(see `fuseq.qat.straight_through`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.qat.gradients import limits, rounded
from fuseq.qat.straight_through import StraightThrough
from fuseq.quant.arithmetic import ARITHMETICS
from fuseq.quant.calibrate import used_interval
from fuseq.quant.executor import IntegerInterpreter, Quantized
from fuseq.quant.grid import Grid
from fuseq.quant.solve import Layer
from fuseq.quant.structure import Structure, bounds
from fuseq.quant.table import QuantizationTable


class TrainingRunner(IntegerInterpreter):
    """One training forward.

    Attributes:
        features: reals of the nodes that were asked for, with gradients.
    """

    def __init__(
        self,
        program: Program,
        table: QuantizationTable,
        weight_grid: Callable[[str, Layer, Grid], Grid],
        *,
        observe: bool,
        features: frozenset[str],
    ) -> None:
        """Set a run up.

        Args:
            program: legalized float program whose parameters are trained.
            table: grids of activations and constants.
            weight_grid: gives a layer's grid, from its path, itself and the grid of its input.
            observe: collect extremes.
            features: names of nodes whose reals are wanted.
        """
        self.rounded_ends: list[Tensor] | None = [] if observe else None
        arithmetic = StraightThrough(ARITHMETICS[table.profile.arithmetic], self.rounded_ends)
        super().__init__(program, table, arithmetic, {}, keep=False)
        self.weight_grid, self.wanted = weight_grid, features
        self.rounding_nodes: list[str] = []
        self.features: dict[str, Tensor] = {}

    def run_node(self, node: fx.Node) -> Any:
        """Value of a node, noting what was asked for."""
        value = super().run_node(node)
        if self.rounded_ends is not None:
            fresh = len(self.rounded_ends) - len(self.rounding_nodes)
            self.rounding_nodes += [node.name] * fresh
        return self._feature(node.name, value) if node.name in self.wanted else value

    def _feature(self, name: str, value: Any) -> Any:
        """Note a value's reals, and compute what follows from them: gradients meet there."""
        real = self.features[name] = self.real(value)
        if not isinstance(value, Quantized):
            return real
        steps = real / value.grid.scale
        return Quantized(rounded(steps, limits(value.grid), value.q.detach()), value.grid)

    def extremes(self, used: Mapping[str, tuple[str, float, float]]) -> dict[str, list[float]]:
        """Smallest and largest real of each group that was rounded in this run.

        Args:
            used: node -> its group, and the interval that readers of its value tell apart.

        Raises:
            FuseqError: FQ402 for a range that is not finite.
        """
        found: dict[str, list[float]] = {}
        if not self.rounded_ends:
            return found
        ends = torch.stack(self.rounded_ends).tolist()
        for name, (smallest, largest) in zip(self.rounding_nodes, ends, strict=True):
            if not math.isfinite(largest - smallest):
                raise FuseqError(
                    "FQ402",
                    f"the range of `{name}`, {smallest:.1e} to {largest:.1e}, has no scale",
                    why="parameters or inputs grew until float32 ended",
                    fix="look at this batch and at the learning rate; load the last checkpoint",
                )
            if name in used:
                group, low, high = used[name]
                seen = found.setdefault(group, [math.inf, -math.inf])
                seen[0] = min(seen[0], max(low, min(smallest, high)))
                seen[1] = max(seen[1], max(low, min(largest, high)))
        return found

    def move(self, node: fx.Node, source: Quantized) -> Tensor:
        """Run an op that only selects values; centered integers need no shift."""
        moved: Tensor = self.in_float(node, source.q)
        return moved

    def cut_to(self, node: fx.Node) -> tuple[int, int] | None:
        """Centered integers at which an absorbed relu or clamp cuts."""
        ends = self.table.cut_to(node)
        if ends is None:
            return None
        zero_point = int(self.table.grids[self.table.absorbed[node.name]].zero_point)
        return ends[0] - zero_point, ends[1] - zero_point

    def frozen(self, name: str, real: Callable[[], Tensor]) -> Quantized:
        """A constant; one that is a parameter gets its gradient."""
        grid = self.table.grids[name]
        return Quantized(rounded(real().float() / grid.scale, limits(grid)), grid)

    def parameters(self, node: fx.Node) -> tuple[Tensor, Grid, Tensor | None]:
        """A layer's weight and bias as they are, and the grid of the weight."""
        layer: Any = self.program.get(node)
        source = self.env[node.all_input_nodes[0]].grid
        return layer.weight, self.weight_grid(str(node.target), layer, source), layer.bias


def used_intervals(program: Program, structure: Structure) -> dict[str, tuple[str, float, float]]:
    """What is observed of each node that rounds: its group, and the interval that is of use.

    Args:
        program: legalized.
        structure: of the program.
    """
    found = {}
    nodes = {node.name: node for node in program.graph.nodes}
    for node in program.graph.nodes:
        name = structure.absorbed.get(node.name, node.name)
        group = structure.group.get(name)
        if group is None or group in structure.fixed:
            continue
        low, high = used_interval(nodes[name], structure) or (-math.inf, math.inf)
        if name != node.name:  # an activation on the accumulator
            (activation,) = node.users
            low, high = max(low, bounds(activation)[0]), min(high, bounds(activation)[1])
        found[node.name] = (group, low, high)
    return found


def require_finite(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Refuse what integers cannot show: NaN and infinity, in inputs and in parameters.

    Raises:
        FuseqError: FQ401 naming an input, FQ402 naming the parameters.
    """
    for name, value in inputs.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise FuseqError(
                "FQ401",
                f"input `{name}` has values that are not finite",
                fix="look at the batch for NaN, and at how it was normalized",
            )
    parameters = dict(model.named_parameters())
    if bool(torch.isfinite(nn.utils.get_total_norm(parameters.values()))):
        return
    broken = [name for name, p in parameters.items() if not bool(torch.isfinite(p).all())]
    if broken:  # the norm of huge ones overflows too
        raise FuseqError(
            "FQ402",
            f"parameters are not finite: {', '.join(broken[:5])}",
            why="a step before this one had a loss or a gradient of NaN or infinity",
            fix="load the last checkpoint; then clip gradients, lower the learning rate, and skip "
            "the step when the loss is not finite",
        )
