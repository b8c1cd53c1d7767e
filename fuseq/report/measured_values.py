"""How each value on a grid fares on one input, and how far the weights behind it reach.

Measured when the report is made, never stored in a bundle: floats that are measured differ in
their last digits from machine to machine.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fuseq.program import Program
from fuseq.quant.grid import Grid
from fuseq.quant.table import QuantizationTable
from fuseq.quant.tensor_statistics import TensorStatistics, tensor_statistics

BINS = 72


@dataclass(frozen=True)
class Histogram:
    """Reals of a value in the float program, and what its grid holds.

    Attributes:
        low: left end of the first bin.
        high: right end of the last bin.
        counts: of each bin, of equal widths.
        clip_low: smallest real of the grid.
        clip_high: largest real of the grid.
    """

    low: float
    high: float
    counts: tuple[int, ...]
    clip_low: float
    clip_high: float


@dataclass(frozen=True)
class Channels:
    """Weights of a layer along its output channels.

    Attributes:
        layer: name of its node.
        lows: smallest weight of each channel.
        highs: largest weight of each channel.
        limits: largest real of each channel's grid.
        dtype: of the frozen weights.
    """

    layer: str
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    limits: tuple[float, ...]
    dtype: str


@dataclass(frozen=True)
class MeasuredValue:
    """One value on a grid.

    Attributes:
        statistics: range, clipping and error.
        grid: in words.
        histogram: of its reals.
        channels: weights of the layer that computes it, or None.
    """

    statistics: TensorStatistics
    grid: str
    histogram: Histogram
    channels: Channels | None


def measured_values(program: Program, inputs: tuple[Tensor, ...]) -> list[MeasuredValue]:
    """Every value on a grid, lowest SQNR first.

    Args:
        program: quantized.
        inputs: of any size it takes; what it is run on, in float and in integers.
    """
    table = program.quantization
    assert table is not None
    fitted = replace(program, example_inputs=inputs)  # their size need not be the captured one
    statistics = tensor_statistics(fitted, [inputs])
    histograms = _Histograms(program, table, {found.node for found in statistics})
    with torch.no_grad():
        histograms.run(*inputs)
    behind = _layers(program, table)
    return [
        MeasuredValue(
            found,
            str(table.grids[found.node]),
            histograms.found[found.node],
            _channels(program, table, behind[found.node]) if found.node in behind else None,
        )
        for found in statistics
    ]


class _Histograms(fx.Interpreter):
    """Runs the float program and counts values as they come, so that none is kept."""

    def __init__(self, program: Program, table: QuantizationTable, names: Set[str]) -> None:
        super().__init__(program.module)
        self.extra_traceback = False
        self.table, self.names = table, names
        self.found: dict[str, Histogram] = {}

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if node.name in self.names:
            self.found[node.name] = _histogram(result, self.table.grids[node.name])
        return result


def _histogram(real: Tensor, grid: Grid) -> Histogram:
    step, zero_point = float(grid.scale), int(grid.zero_point)
    clip_low, clip_high = (step * (q - zero_point) for q in (grid.qmin, grid.qmax))
    low, high = min(float(real.min()), clip_low), max(float(real.max()), clip_high)
    margin = (high - low) / 40
    low, high = low - margin, high + margin
    counts = torch.histc(real.float(), BINS, low, high).long()
    return Histogram(low, high, tuple(counts.tolist()), clip_low, clip_high)


def _layers(program: Program, table: QuantizationTable) -> dict[str, fx.Node]:
    """The layer with weights that computes each value: its own node, or one it absorbed."""
    return {
        table.absorbed.get(node.name, node.name): node
        for node in program.graph.nodes
        if node.op == "call_module" and f"{node.target}.weight" in table.integers
    }


def _channels(program: Program, table: QuantizationTable, node: fx.Node) -> Channels:
    grid = table.grids[f"{node.target}.weight"]
    weight: Any = program.get(node).weight
    rows = weight.detach().movedim(grid.axis or 0, 0).reshape(weight.shape[grid.axis or 0], -1)
    low, high = rows.aminmax(dim=1)
    limits = (grid.scale * grid.qmax).reshape(-1).expand(len(rows))
    return Channels(
        node.name,
        tuple(low.tolist()),
        tuple(high.tolist()),
        tuple(limits.tolist()),
        grid.dtype,
    )
