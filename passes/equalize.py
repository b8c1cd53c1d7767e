r"""`equalize`: scales move between layers until one grid for a tensor suits all of its channels.

A layer's output channel c may be multiplied by any s_c > 0 if every reader takes 1 / s_c, and what
stands between passes a scale on, f(s x) = s f(x) (Nagel et al. 2019, "Data-Free Quantization
Through Weight Equalization and Bias Correction", eq. 6 to 8):

    W2 f(W1 x + b1)  ==  (W2 diag(1 / s)) f(diag(s) W1 x + diag(s) b1)

A product passes the scale of each factor on, whatever the other one is: in a * b both convolutions
scale, in a * sigmoid(b) the first. Depthwise convolutions are readers and producers. Layers whose
outputs are added take the same scales, since s a + s b = s (a + b): a residual network's are one
chain.

With r_c the largest |value| of channel c over the calibration data, of all layers of a sum,

    s_c = k r_c^(-2/3),      r_c s_c = k r_c^(1/3)

An exponent of 1 would be best for the values, whose grid all channels share, and 0 for the columns
of the readers, each row of which has one scale too. Slices of one convolution share its grid: k
brings them to one range, that of a part that cannot be scaled if there is one; else the geometric
mean of all s_c is 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import networkx
import torch
from torch import Tensor, fx

import fuseq
from fuseq import ops
from fuseq.affine.refusal import FIXES, Refusal, RefusedError
from fuseq.channels import channel_ranges, scale_columns, scale_rows, used
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.quant.tensor_statistics import OUTLIER
from fuseq.requirements import batch_norms_folded, not_legalized

EXPONENT = 2 / 3
"""What is made equal of the logarithm of ranges; benchmarks/equalize.py measures what it gives."""

LARGEST = 2.0**8
"""Largest factor: a channel that is smaller still hardly reaches one step of an 8 bit grid."""

PROPORTIONAL = frozenset(
    "relu leaky_relu prelu max_pool avg_pool adaptive_avg_pool interpolate interpolate_nearest "
    "pad".split()
)
"""Ops with f(s x) = s f(x) for s > 0, channel by channel."""


SUMS = frozenset({"add", "sub"})
"""Ops that pass a scale on if both operands have it."""


@dataclass(frozen=True)
class Equalized:
    """Output channels of one layer that were scaled.

    Attributes:
        layer: its name; of layers whose outputs are added, each has an entry.
        channels: first channel, and last + 1.
        readers: names of the layers that took the inverse.
        spread_before: largest range of a channel over the geometric mean of all that are active.
        spread_after: the same afterwards.
        dead: channels that were never active; they stay as they were.
        outliers: channels whose range was more than 8 times the mean.
    """

    layer: str
    channels: tuple[int, int]
    readers: tuple[str, ...]
    spread_before: float
    spread_after: float
    dead: tuple[int, ...]
    outliers: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """Output channels that go one way: of a layer, or of several whose outputs are added.

    Attributes:
        values: the nodes that hold exactly these channels: the layers themselves, or a slice.
        start: first channel.
        stop: last channel + 1.
        readers: layers that can take the inverse, with the channel where these begin there; empty
            if the part cannot be scaled.
        summands: layers whose outputs are added on the way, this one among them.
    """

    values: tuple[fx.Node, ...]
    start: int
    stop: int
    readers: tuple[tuple[fx.Node, int], ...]
    summands: frozenset[fx.Node] = frozenset()


@dataclass(frozen=True)
class Equalize(fuseq.Pass):
    """Move scales between layers until the channels of each value have similar ranges.

    Leaves an `Equalized` for each layer or slice that was scaled, and a `Refusal` for each other.

    Attributes:
        calibration: batches of inputs, read each time the pass runs; proving it takes two runs.
        progress: called with the number of batches seen.
    """

    name: ClassVar[str] = "equalize"
    promise: ClassVar[fuseq.Promise] = fuseq.SameFunction()
    requires: ClassVar[tuple[fuseq.Predicate, ...]] = (batch_norms_folded, not_legalized)

    calibration: Iterable[Any] | None = field(default=None, repr=False)
    progress: Callable[[int], None] | None = field(default=None, repr=False)

    def run(self, program: Program) -> int:
        """Edit the weights; returns the number of layers and slices that were scaled.

        Raises:
            FuseqError: FQ202 without data, FQ006 for data that is empty or does not fit, FQ401 for
                a value that is not finite.
        """
        if self.calibration is None:
            raise FuseqError(
                "FQ202", "equalize needs data", fix="--calib DIR, or calibration_data()"
            )
        groups = [group for group in _groups(program) if any(part.readers for part in group[1])]
        watched = {used(program, v) for _, parts in groups for part in parts for v in part.values}
        ranges = channel_ranges(program, watched, self.calibration, self.progress)
        count = 0
        for layers, parts in groups:
            widest = [
                torch.stack([ranges[used(program, v)] for v in part.values]).amax(0)
                for part in parts
            ]
            for part, before, scale in zip(parts, widest, _scales(parts, widest), strict=True):
                if not part.readers:
                    continue
                for layer in layers:
                    scale_rows(program.get(layer), part.start, scale)
                    program.note(_described(layer, part, before, before * scale))
                    count += 1
                for reader, first in part.readers:
                    scale_columns(program.get(reader), first, 1 / scale)
        return count


# --- where a scale can go ---


def _groups(program: Program) -> list[tuple[tuple[fx.Node, ...], list[Part]]]:
    """Layers that take the same scales, with their parts, in graph order.

    Alone, a layer has a part for each of its slices; layers whose outputs are added have one part.
    """
    found = {n: _parts(program, n) for n in program.graph.nodes if _is_producer(program, n)}
    tied: networkx.Graph[fx.Node] = networkx.Graph()
    tied.add_nodes_from(found)
    for layer, parts in found.items():
        tied.add_edges_from((layer, other) for part in parts for other in part.summands)
    groups = []
    for component in networkx.connected_components(tied):
        layers = tuple(layer for layer in found if layer in component)
        parts = found[layers[0]]
        groups.append((layers, [_together(program, layers, found)] if layers[1:] else parts))
    return groups


def _together(
    program: Program, layers: tuple[fx.Node, ...], found: dict[fx.Node, list[Part]]
) -> Part:
    """The one part of layers whose outputs are added; without readers, and noted, if one fails."""
    parts = [found[layer][0] for layer in layers]
    fixed = [layer for layer, part in zip(layers, parts, strict=True) if not part.readers]
    readers = dict.fromkeys(reader for part in parts for reader in part.readers)
    for layer in layers:
        if fixed and layer not in fixed:
            reason = f"`{fixed[0].name}`, which cannot be scaled, is added to it"
            where = (layer.name, program.source(layer), layer.name, layer.name)
            program.note(Refusal("nonlinear", *where, reason, FIXES["nonlinear"]))
    return replace(
        parts[0],
        values=tuple(value for part in parts for value in part.values),
        readers=() if fixed else tuple(readers),
    )


def _is_producer(program: Program, node: fx.Node) -> bool:
    dims = {"conv2d": 4, "linear": 2}.get(ops.name_of(program, node))
    return "shape" in node.meta and len(program.shape(node)) == dims


def _parts(program: Program, layer: fx.Node) -> list[Part]:
    """The slices of a layer if it is read in slices only that do not overlap, else all of it."""
    channels = program.shape(layer)[1]
    slices = []
    for user in layer.users:
        if ops.name_of(program, user) == "slice" and user.kwargs["dim"] == 1:
            start, end, step = slice(*_bounds(user)).indices(channels)
            if step == 1:
                slices.append((start, end, user))
    slices.sort(key=lambda part: part[:2])
    apart = all(a[1] <= b[0] for a, b in itertools.pairwise(slices))
    if not slices or len(slices) < len(layer.users) or not apart:
        slices = [(0, channels, layer)]
    return [Part((v,), start, end, *_accepted(program, layer, v)) for start, end, v in slices]


def _bounds(node: fx.Node) -> tuple[Any, Any, Any]:
    return node.kwargs["start"], node.kwargs["end"], node.kwargs["step"]


def _accepted(
    program: Program, layer: fx.Node, value: fx.Node
) -> tuple[tuple[tuple[fx.Node, int], ...], frozenset[fx.Node]]:
    """Readers and summands of a part; neither, and a note, if one cannot take its scales."""
    seen: set[fx.Node] = {value}
    summands: set[fx.Node] = set()
    try:
        readers = tuple(
            dict.fromkeys(_readers(program, value, 0, program.shape(value)[1], seen, summands))
        )
        products = [n.name for n in seen if ops.name_of(program, n) in ("mul", "div")]
        if summands and products:
            raise RefusedError("nonlinear", f"it is added to others, and goes into `{products[0]}`")
    except RefusedError as error:
        where = (value.name, program.source(value), layer.name, value.name)
        program.note(Refusal(error.code, *where, error.reason, error.fix))
        return (), frozenset()
    return readers, frozenset(summands)


def _readers(
    program: Program,
    value: fx.Node,
    first: int,
    count: int,
    seen: set[fx.Node],
    summands: set[fx.Node],
) -> Iterator[tuple[fx.Node, int]]:
    """Layers behind a value, with the channel at which the scaled ones begin there.

    Args:
        program: holds them.
        value: its channels `first` to `first + count` are scaled.
        first: as said.
        count: as said.
        seen: nodes that were passed on the way; grows.
        summands: layers whose outputs are added on the way; grows.

    Raises:
        RefusedError: something on the way does not pass a scale on.
    """
    for user in value.users:
        name = ops.name_of(program, user)
        if name == "shape":
            continue
        if name in ("conv2d", "conv_transpose2d") or (
            name == "linear" and len(program.shape(value)) == 2
        ):
            yield user, first
            continue
        if user in seen and name in SUMS:
            continue  # the other operand, with the same scales
        if user in seen:
            raise RefusedError("nonlinear", f"`{user.name}` ({name}) reads it in two ways")
        seen.add(user)
        if name in SUMS:
            summands |= _summands(program, user)
        after = _passed(program, value, user, first, count)
        if after is not None:
            yield from _readers(program, user, after, count, seen, summands)


def _summands(program: Program, total: fx.Node) -> set[fx.Node]:
    """Layers whose whole outputs are added up in a value.

    Raises:
        RefusedError: something else is, or is passed on the way.
    """
    found: set[fx.Node] = set()
    seen, pending = {total}, [total]
    while pending:
        node = pending.pop()
        name, operands = ops.name_of(program, node), node.all_input_nodes
        if _is_producer(program, node):
            found.add(node)
            continue
        if name in SUMS:
            others = [
                o for o in node.args if not isinstance(o, fx.Node) or not _alike(program, o, node)
            ]
            if others:
                raise RefusedError("nonlinear", f"`{node.name}` adds `{others[0]}` to it")
        elif _is_proportional(program, node):
            operands = operands[:1]
        else:
            raise RefusedError(
                "nonlinear", f"`{node.name}`, which cannot be scaled, is added to it"
            )
        pending += [operand for operand in operands if operand not in seen]
        seen.update(operands)
    return found


def _alike(program: Program, node: fx.Node, total: fx.Node) -> bool:
    """Whether an operand of a sum has its channels, and not one for all of them."""
    shape, other = program.shape(node), program.shape(total)
    return len(shape) == len(other) and shape[1] == other[1]


def _passed(program: Program, value: fx.Node, user: fx.Node, first: int, count: int) -> int | None:
    """Where scaled channels begin in what reads them; None if it reads none of them.

    Raises:
        RefusedError: the reader does not pass a scale on.
    """
    name, before = ops.name_of(program, user), program.shape(value)
    if name == "output":
        raise RefusedError("leak", f"`{value.name}` is an output, which must not be scaled")
    after = program.shape(user)
    channels_stay = len(before) == len(after) and before[1] == after[1]
    if name in SUMS or _is_proportional(program, user):
        return first
    if name == "slice":
        if user.kwargs["dim"] != 1:
            return first
        start, end, step = slice(*_bounds(user)).indices(before[1])
        if step == 1 and start <= first and first + count <= end:
            return first - start
        if first + count <= start or end <= first:
            return None
        raise RefusedError("leak", f"`{user.name}` takes a part of its channels")
    if name == "concat" and user.kwargs["dim"] == 1:
        operands: Any = user.args[0]
        if operands.count(value) == 1:
            left = operands[: operands.index(value)]
            return first + sum(program.shape(operand)[1] for operand in left)
    if name == "reshape" and before[2:] == (1, 1) and after == before[:2]:
        return first
    if name == "mul" and user.args.count(value) == 1 and channels_stay:
        return first
    if name == "div" and user.args[0] is value is not user.args[1] and channels_stay:
        return first
    raise RefusedError("nonlinear", f"`{user.name}` ({name}) does not pass a scale on")


def _is_proportional(program: Program, node: fx.Node) -> bool:
    name = ops.name_of(program, node)
    return name in PROPORTIONAL or (name == "mean" and 1 not in node.kwargs["dim"])  # type: ignore[operator]


# --- scaling ---


def _scales(parts: list[Part], ranges: list[Tensor]) -> list[Tensor]:
    """Factors of each part's channels, float64; 1 for dead channels and for fixed parts."""
    wanted = [
        torch.where(r > 0, r**-EXPONENT / (r ** (1 - EXPONENT)).amax(), 0.0)  # largest range: 1
        for r in ranges
    ]
    fixed = [r.amax() for part, r in zip(parts, ranges, strict=True) if not part.readers]
    live = torch.cat([w[w > 0] for w in wanted])
    level = max(fixed) if fixed and max(fixed) > 0 else 1 / _mean(live)
    return [
        torch.where(w > 0, (w * level).clamp(1 / LARGEST, LARGEST), 1.0)
        if part.readers
        else torch.ones_like(w)
        for part, w in zip(parts, wanted, strict=True)
    ]


def _mean(values: Tensor) -> Tensor:
    """Geometric mean of positive values; 1 of none."""
    return values.log().mean().exp() if values.numel() else torch.ones((), dtype=torch.float64)


def _described(layer: fx.Node, part: Part, before: Tensor, after: Tensor) -> Equalized:
    live = before > 0
    mean = _mean(before[live])
    return Equalized(
        layer.name,
        (part.start, part.stop),
        tuple(reader.name for reader, _ in part.readers),
        float(before.amax() / mean),
        float(after.amax() / _mean(after[live])),
        tuple((~live).nonzero().flatten().tolist()),
        tuple((before > OUTLIER * mean).nonzero().flatten().tolist()),
    )
