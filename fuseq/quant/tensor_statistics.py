"""How each quantized value fares: its range, what its grid cuts off, its error in the network.

Values of the float program and integers of the integer program are compared on the same batches,
so the error of a value includes those of the values before it. Where every reader cuts a value
(ReLU, clamp) only the part inside counts: the ends of its grid cut as the readers do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.quant.calibrate import batches_of
from fuseq.quant.executor import execute
from fuseq.quant.grid import Grid
from fuseq.quant.structure import bounds


@dataclass(frozen=True)
class TensorStatistics:
    """One quantized value over all batches.

    Attributes:
        node: its name.
        low: smallest real in the float program.
        high: largest real.
        scale: step of its grid.
        dtype: of its grid.
        clipped: share of its reals that lie more than half a step outside the grid, in 0..1.
        sqnr_db: power of its reals over the power of the error of its integers; infinite for none.
        rmse_steps: root of the mean squared error in steps. Rounding alone gives 0.289.
        channels: number of channels (dimension 1), 1 for a value without.
        dead: channels that are zero throughout.
        outliers: channels whose largest magnitude is more than 8 times the geometric mean of those
            of all channels that are not dead.
    """

    node: str
    low: float
    high: float
    scale: float
    dtype: str
    clipped: float
    sqnr_db: float
    rmse_steps: float
    channels: int
    dead: tuple[int, ...]
    outliers: tuple[int, ...]


OUTLIER = 8.0
"""A channel is named as an outlier if its range is so many times the geometric mean."""


def tensor_statistics(
    program: Program, data: Iterable[Any], progress: Callable[[int], None] | None = None
) -> list[TensorStatistics]:
    """Statistics of every value on a grid.

    Args:
        program: quantized.
        data: batches of inputs, seen once; one at a time is in memory, with all its values.
        progress: called with the number of batches seen so far.

    Returns:
        One for each value, the lowest SQNR first.

    Raises:
        FuseqError: FQ201 for a program that is not quantized, FQ006 for data that is empty or does
            not fit.
    """
    table = program.quantization
    if table is None:
        raise FuseqError("FQ201", "the program is not quantized", fix="run fuseq.quantize first")
    pools = {
        node: _Pool(table.grids[node.name], _interval(node))
        for node in program.graph.nodes
        if node.name in table.grids and node.op != "get_attr"
    }
    count = 0
    with torch.no_grad():
        for count, batch in enumerate(batches_of(program, data), start=1):
            exact = fx.Interpreter(program.module, garbage_collect_values=False)
            exact.run(*batch)
            integers = execute(program, batch).integers
            for node, pool in pools.items():
                pool.update(exact.env[node], integers[node.name])
            if progress:
                progress(count)
    if not count:
        raise FuseqError(
            "FQ006", "the calibration set is empty", fix="give at least one batch of inputs"
        )
    found = [pool.statistics(node.name) for node, pool in pools.items()]
    return sorted(found, key=lambda statistics: statistics.sqnr_db)


def _interval(node: fx.Node) -> tuple[float, float]:
    """Interval in which the readers of a value tell its values apart."""
    cuts = [
        bounds(user) if user.target in (torch.relu, torch.clamp) else (-math.inf, math.inf)
        for user in node.users
    ] or [(-math.inf, math.inf)]
    return min(low for low, _ in cuts), max(high for _, high in cuts)


class _Pool:
    """Sums and extremes of one value."""

    def __init__(self, grid: Grid, interval: tuple[float, float]) -> None:
        self.grid, self.interval = grid, interval
        step, zero_point = float(grid.scale), int(grid.zero_point)
        self.ends = tuple(
            step * (q - zero_point + half) for q, half in ((grid.qmin, -0.5), (grid.qmax, 0.5))
        )
        self.seen = self.clipped = 0
        self.power = self.noise = 0.0
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def update(self, real: Tensor, q: Tensor) -> None:
        real = real.clamp(*self.interval)
        error = self.grid.dequantize(q).clamp(*self.interval).double() - real.double()
        self.power += float(real.double().square().sum())
        self.noise += float(error.square().sum())
        self.seen += real.numel()
        self.clipped += int(((real < self.ends[0]) | (real > self.ends[1])).sum())
        channels = real.transpose(0, 1).flatten(1) if real.dim() > 1 else real.reshape(1, -1)
        low, high = channels.aminmax(dim=1)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def statistics(self, name: str) -> TensorStatistics:
        assert self.low is not None
        assert self.high is not None
        largest = torch.maximum(self.low.abs(), self.high.abs()).double()
        live = largest > 0
        mean = largest[live].log().mean().exp()  # of none: nan, and nothing is larger
        step = float(self.grid.scale)
        return TensorStatistics(
            name,
            float(self.low.min()),
            float(self.high.max()),
            step,
            self.grid.dtype,
            self.clipped / self.seen,
            10 * math.log10(self.power / self.noise) if self.noise and self.power else math.inf,
            math.sqrt(self.noise / self.seen) / step,
            len(largest),
            tuple((~live).nonzero().flatten().tolist()),
            tuple((largest > OUTLIER * mean).nonzero().flatten().tolist()),
        )
