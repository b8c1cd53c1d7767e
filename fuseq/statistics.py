r"""Batch norms whose statistics no training can have left: what to know before they are folded.

In eval a batch norm is `y = s x + t` with `s = weight / sqrt(running_var + eps)`. Folding makes it
part of a convolution, whatever the statistics are, so what is wrong with them is said before:

- *unset*: running mean 0 and variance 1 in every channel, the values of a new layer;
- *dead*: `weight = 0` or `running_var = 0`: the channel is constant at the cost of a live one;
- *extreme*: `running_var < eps` and `|s| > EXTREME_SCALE`: epsilon sets the scale, not the data;
- *batch*: no running statistics at all: one image's output depends on the others of its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fuseq import ops
from fuseq.program import Program

EXTREME_SCALE = 100.0
"""Unit weight over the standard deviation 0.01: what batch norms of trained networks stay below."""

RECALIBRATE = "put recalibrate-bn before fuse-affine, with --calib"


@dataclass(frozen=True)
class StatisticsWarning:
    """What one or more batch norms have in common.

    Attributes:
        kind: "unset", "dead", "extreme" or "batch".
        node: name of the first batch norm concerned.
        source: its `file:line`, or the empty string.
        nodes: names of all of them.
        message: what is wrong, in a sentence.
        fix: what to do.
    """

    kind: str
    node: str
    source: str
    nodes: tuple[str, ...]
    message: str
    fix: str


def statistics_warnings(program: Program) -> list[StatisticsWarning]:
    """At most one warning of each kind.

    Args:
        program: with its batch norms, before any is folded.
    """
    norms = {
        node: program.get(node)
        for node in program.graph.nodes
        if ops.name_of(program, node) in ("batch_norm", "batch_norm1d")
    }
    total = len(norms)
    unset = [node for node, norm in norms.items() if _is_unset(norm)]
    dead = {node: _dead(norm) for node, norm in norms.items()}
    extreme = {node: _extreme(norm) for node, norm in norms.items()}
    batch = [n for n in program.graph.nodes if n.target in _BATCH_STATISTICS]
    found = [
        _warning(program, "unset", unset,
                 f"{len(unset)} of {total} batch norms have statistics that look unset "
                 "(mean 0, variance 1)", f"load trained weights, or {RECALIBRATE}"),
        _warning(program, "dead", [n for n, count in dead.items() if count],
                 f"{sum(dead.values())} channels are constant (weight or variance 0)",
                 f"prune them; if the statistics are stale, {RECALIBRATE}"),
        _warning(program, "extreme", [n for n, count in extreme.items() if count],
                 f"{sum(extreme.values())} channels have a variance below epsilon and a "
                 f"scale above {EXTREME_SCALE:g}", RECALIBRATE),
        _warning(program, "batch", batch,
                 f"{len(batch)} batch norms use the statistics of the batch: an output depends on "
                 "the other images of its batch", "train with track_running_stats=True"),
    ]  # fmt: skip
    return [warning for warning in found if warning]


_BATCH_STATISTICS = (torch.ops.aten._native_batch_norm_legit.no_stats,)


def _warning(
    program: Program, kind: str, nodes: Sequence[fx.Node], message: str, fix: str
) -> StatisticsWarning | None:
    if not nodes:
        return None
    names = tuple(node.name for node in nodes)
    return StatisticsWarning(kind, names[0], program.source(nodes[0]), names, message, fix)


def _statistics(norm: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and scale of each channel."""
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert var is not None
    return mean, var, norm.weight.detach() / (var + norm.eps).sqrt()


def _is_unset(norm: nn.Module) -> bool:
    mean, var, _ = _statistics(norm)
    return bool((mean == 0).all() and (var == 1).all())


def _dead(norm: nn.Module) -> int:
    """Number of constant channels."""
    _, var, scale = _statistics(norm)
    return int(((scale == 0) | (var == 0)).sum())


def _extreme(norm: nn.Module) -> int:
    """Number of live channels whose scale comes from epsilon."""
    _, var, scale = _statistics(norm)
    tiny = (var > 0) & (var < float(norm.eps))  # type: ignore[arg-type]
    return int((tiny & (scale.abs() > EXTREME_SCALE)).sum())
