r"""Recompute batch-norm statistics over a whole data set, forward only.

For a norm whose input takes values `x` over the whole set (all batches, all positions), per channel

    mean = sum(x) / n,    var = sum((x - mean)^2) / (n - 1)    (unbiased, as torch keeps it)

Batches are pooled by Chan's update (Chan, Golub, LeVeque 1983), in float64:

    n = a + b,  d = mean_b - mean_a,  mean = mean_a + d b/n,  M2 = M2_a + M2_b + d^2 a b / n

so the result is that of the whole set whatever the batch size. (Averaging per-batch variances, as
is common, loses the spread of the batch means.) A norm that is called several times gets the
statistics of each call's own input: what each call normalizes by in training.

A norm's input depends on the norms before it. They are therefore recomputed level by level: norms
that no other pending norm feeds, over all the data, then those behind them. What results is the
fixed point: every norm's statistics are those of its input in the final network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

import fuseq
from fuseq import ops
from fuseq.errors import FuseqError
from fuseq.level_sweep import LevelSweep, levels
from fuseq.program import Program
from fuseq.quant.calibrate import batches_of


@dataclass(frozen=True)
class RecalibrateBatchNorm(fuseq.Pass):
    """Set running statistics to those of the calibration set.

    Attributes:
        batches: number of batches to use; 0 for all.
        calibration: batches of inputs, read once.
        progress: called with the number of batches done so far, over all levels.
    """

    name: ClassVar[str] = "recalibrate-bn"
    promise: ClassVar[fuseq.Promise] = fuseq.NewFunction("batch-norm statistics come from the data")

    batches: int = 0
    calibration: Iterable[Any] | None = field(default=None, repr=False)
    progress: Callable[[int], None] | None = field(default=None, repr=False)

    def run(self, program: Program) -> int:
        """Edit the statistics; returns the number of norms recomputed.

        Raises:
            FuseqError: FQ202 without data, FQ006 for data that is empty, does not fit or has too
                few values for a variance, FQ401 for a variance that is not finite.
        """
        if self.calibration is None:
            raise FuseqError(
                "FQ202", "recalibrate-bn needs data", fix="--calib DIR, or calibration_data()"
            )
        norms = [n for n in program.graph.nodes if ops.name_of(program, n).startswith("batch_norm")]
        sweep = LevelSweep(fx.Interpreter(program.module), norms, self._data(program))
        done = 0
        for level in levels(norms, program.graph):
            pools = {node: _Pool() for node in level}
            for values in sweep.batches():
                for node, pool in pools.items():
                    pool.update(values[node.all_input_nodes[0]])
                done += 1
                if self.progress:
                    self.progress(done)
            for node, pool in pools.items():
                pool.store(program.get(node), program.where(node))
            sweep.waiting -= set(level)
        return len(norms)

    def _data(self, program: Program) -> list[tuple[Tensor, ...]]:
        assert self.calibration is not None
        data: list[tuple[Tensor, ...]] = []
        for batch in batches_of(program, self.calibration):
            data.append(batch)
            if len(data) == self.batches:
                break
        if not data:
            raise FuseqError(
                "FQ006", "the calibration set is empty", fix="give at least one batch of inputs"
            )
        return data


class _Pool:
    """Running count, mean and sum of squared deviations per channel, float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros(())
        self.squares: Tensor = torch.zeros(())

    def update(self, x: Tensor) -> None:
        values = x.detach().double().transpose(0, 1).flatten(1)
        count, mean = values.shape[1], values.mean(1)
        squares = ((values - mean[:, None]) ** 2).sum(1)
        total = self.count + count
        step = mean - self.mean
        self.squares = self.squares + squares + step**2 * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total

    def store(self, norm: nn.Module, where: str) -> None:
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if self.count < 2:
            raise FuseqError(
                "FQ006",
                f"{where} sees a single value per channel: a variance needs two",
                fix="give more calibration images",
            )
        variance = (self.squares / (self.count - 1)).to(norm.running_var.dtype)
        if not bool(variance.isfinite().all()):
            raise FuseqError(
                "FQ401",
                f"the variance of what {where} sees is not finite in {variance.dtype}",
                why=f"its largest mean is {float(self.mean.abs().max()):.1e}",
                fix="look for weights that diverged before it, and at the calibration data",
            )
        # New tensors: another call of the same norm shares the old ones, and has its own input.
        norm.running_mean = self.mean.to(norm.running_mean.dtype)
        norm.running_var = variance
