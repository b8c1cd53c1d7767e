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
fixed point: every norm's statistics are those of its input in the final network. Each batch waits
between levels with the values that are still needed, so that nothing is computed twice; batches
beyond `KEPT_BYTES` start over at each level instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

import fuseq
from fuseq import ops
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.quant.calibrate import batches_of

KEPT_BYTES = 2**30
"""Values of waiting batches that may be kept between levels."""


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
                few values for a variance.
        """
        if self.calibration is None:
            raise FuseqError(
                "FQ202", "recalibrate-bn needs data", fix="--calib DIR, or calibration_data()"
            )
        norms = [n for n in program.graph.nodes if ops.name_of(program, n).startswith("batch_norm")]
        sweep = _Sweep(program, norms, self._data(program))
        done = 0
        for level in _levels(program, norms):
            pools = {node: _Pool() for node in level}
            for values in sweep.batches():
                for node, pool in pools.items():
                    pool.update(values[node.all_input_nodes[0]])
                done += 1
                if self.progress:
                    self.progress(done)
            for node, pool in pools.items():
                pool.store(program.get(node), program.where(node))
            sweep.pending -= set(level)
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
        # New tensors: another call of the same norm shares the old ones, and has its own input.
        norm.running_mean = self.mean.to(norm.running_mean.dtype)
        norm.running_var = (self.squares / (self.count - 1)).to(norm.running_var.dtype)


class _Sweep:
    """Runs every batch up to the norms that are still pending.

    Attributes:
        pending: norms whose statistics are not yet final; nothing behind them is computed.
    """

    def __init__(
        self, program: Program, norms: list[fx.Node], data: list[tuple[Tensor, ...]]
    ) -> None:
        self.program, self.data, self.pending = program, data, set(norms)
        self.inputs = program.inputs()
        self.nodes = _leading_to(program, norms)
        self.kept: dict[int, dict[fx.Node, Any]] = {}
        self.room = KEPT_BYTES

    def batches(self) -> Iterator[dict[fx.Node, Any]]:
        """Values of each batch in turn; those that pending norms read are among them."""
        for index, batch in enumerate(self.data):
            values = self.kept.pop(index, None)
            if values is None:
                values = dict(zip(self.inputs, batch, strict=False))
            else:
                self.room += _size(values)
            self._advance(values)
            yield values
            if _size(values) <= self.room:
                self.room -= _size(values)
                self.kept[index] = values

    def _advance(self, values: dict[fx.Node, Any]) -> None:
        """Compute what no pending norm holds up; forget what nobody will read any more."""
        interpreter = fx.Interpreter(self.program.module, garbage_collect_values=False)
        interpreter.env, interpreter.extra_traceback = values, False
        with torch.no_grad():
            for node in self.nodes:
                if node in values or node in self.pending:
                    continue
                if all(operand in values for operand in node.all_input_nodes):
                    values[node] = interpreter.run_node(node)
                    self._forget(node, values)

    def _forget(self, node: fx.Node, values: dict[fx.Node, Any]) -> None:
        """Replace a value by None once all its readers have run: it counts as computed."""
        for operand in node.all_input_nodes:
            readers = [user for user in operand.users if user in self.nodes]
            if all(user in values for user in readers):
                values[operand] = None


def _leading_to(program: Program, norms: list[fx.Node]) -> dict[fx.Node, None]:
    """Nodes that some norm depends on, and the norms, in graph order; inputs left out."""
    needed = set(norms)
    for node in reversed(program.graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return {n: None for n in program.graph.nodes if n in needed and n.op != "placeholder"}


def _size(values: dict[fx.Node, Any]) -> int:
    return sum(v.nbytes for v in values.values() if isinstance(v, Tensor))


def _levels(program: Program, norms: list[fx.Node]) -> list[list[fx.Node]]:
    """Norms by the length of the longest chain of norms before them, each level in graph order."""
    pending = set(norms)
    depth: dict[fx.Node, int] = {}
    for node in program.graph.nodes:
        before = max((depth[n] for n in node.all_input_nodes), default=0)
        depth[node] = before + (node in pending)
    levels: dict[int, list[fx.Node]] = {}
    for node in norms:
        levels.setdefault(depth[node], []).append(node)
    return [levels[d] for d in sorted(levels)]
