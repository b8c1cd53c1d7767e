"""The training forward: the integer executor, with gradients and with weights that move.

Whatever the executor computes is what is trained, op by op; only what a value on a grid is differs
(see `fuseq.qat.straight_through`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.qat.straight_through import StraightThrough, limits, rounded
from fuseq.quant.arithmetic import ARITHMETICS
from fuseq.quant.arithmetic.base import along
from fuseq.quant.calibrate import used_interval
from fuseq.quant.executor import IntegerInterpreter, Quantized
from fuseq.quant.grid import LIMITS, Grid, bias_grid
from fuseq.quant.solve import Layer
from fuseq.quant.structure import Structure, bounds
from fuseq.quant.table import QuantizationTable


class TrainingRunner(IntegerInterpreter):
    """One training forward.

    Attributes:
        extremes: smallest and largest real of each group, two float32 each, if it observes.
        features: reals of the nodes that were asked for, with gradients.
    """

    def __init__(
        self,
        program: Program,
        structure: Structure,
        table: QuantizationTable,
        weight_grid: Callable[[str, Layer, Grid], Grid],
        *,
        observe: bool,
        features: frozenset[str],
    ) -> None:
        """Set a run up.

        Args:
            program: legalized float program whose parameters are trained.
            structure: of that program.
            table: grids of activations and constants.
            weight_grid: gives a layer's grid, from its path, itself and the grid of its input.
            observe: collect extremes.
            features: names of nodes whose reals are wanted.
        """
        self.rounded_ends: list[Tensor] | None = [] if observe else None
        arithmetic = StraightThrough(ARITHMETICS[table.profile.arithmetic], self.rounded_ends)
        super().__init__(program, table, arithmetic, {}, keep=False)
        self.structure, self.weight_grid, self.wanted = structure, weight_grid, features
        self.extremes: dict[str, Tensor] = {}
        self.features: dict[str, Tensor] = {}

    def run_node(self, node: fx.Node) -> Any:
        """Value of a node, noting what was asked for."""
        value = super().run_node(node)
        if self.rounded_ends:
            self._note_extremes(node, self.rounded_ends)
            self.rounded_ends.clear()
        if node.name in self.wanted:
            self.features[node.name] = self.real(value)
        return value

    def _note_extremes(self, node: fx.Node, ends: list[Tensor]) -> None:
        """Widen the extremes of a node's group by what was rounded, as far as readers use it."""
        name = self.table.absorbed.get(node.name, node.name)
        group = self.structure.group.get(name)
        if group is None or group in self.structure.fixed:
            return
        value = node if name == node.name else next(iter(node.users))
        low, high = used_interval(value, self.structure) or (float("-inf"), float("inf"))
        if value is not node:
            cut = bounds(value)
            low, high = max(low, cut[0]), min(high, cut[1])
        seen = torch.stack(ends).clamp(low, high)
        seen = torch.stack((seen[:, 0].amin(), seen[:, 1].amax()))
        if group in self.extremes:
            older = self.extremes[group]
            seen = torch.stack((torch.minimum(seen[0], older[0]), torch.maximum(seen[1], older[1])))
        self.extremes[group] = seen

    def move(self, node: fx.Node, source: Quantized) -> Tensor:
        """Run an op that only selects values; centered integers need no shift."""
        moved: Tensor = self.in_float(node, source.q)
        return moved

    def frozen(self, name: str, real: Callable[[], Tensor]) -> Quantized:
        """A constant; one that is a parameter gets its gradient."""
        grid = self.table.grids[name]
        return Quantized(rounded(real().float() / grid.scale, limits(grid)), grid)

    def parameters(self, node: fx.Node) -> tuple[Tensor, Grid, Tensor | None]:
        """Integers of a layer's weight, its grid, and the integers of its bias."""
        layer: Any = self.program.get(node)
        source = self.env[node.all_input_nodes[0]].grid
        grid = self.weight_grid(str(node.target), layer, source)
        scale = along(grid.scale, layer.weight, grid.axis or 0)
        weight = rounded(layer.weight / scale, (-127, 127))
        if layer.bias is None:
            return weight, grid, None
        exact = layer.bias.double() / bias_grid(source, grid).scale.double()
        return weight, grid, rounded(exact, LIMITS["int32"])


def require_finite(program: Program, inputs: tuple[Tensor, ...]) -> None:
    """Refuse what integers cannot show: NaN and infinity, in inputs and in parameters.

    Raises:
        FuseqError: FQ401 naming an input, FQ402 naming the parameters.
    """
    for name, value in zip(program.input_names, inputs, strict=False):
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise FuseqError(
                "FQ401",
                f"input `{name}` has values that are not finite",
                fix="look at the batch for NaN, and at how it was normalized",
            )
    parameters = dict(program.module.named_parameters())
    if not bool(torch.isfinite(nn.utils.get_total_norm(parameters.values()))):
        broken = [name for name, p in parameters.items() if not bool(torch.isfinite(p).all())]
        raise FuseqError(
            "FQ402",
            f"parameters are not finite: {', '.join(broken[:5])}",
            why="a step before this one had a loss or a gradient of NaN or infinity",
            fix="load the last checkpoint; then clip gradients, lower the learning rate, and skip "
            "the step when the loss is not finite",
        )
