r"""Channelwise ops folded into a layer from which other ops separate them.

`y = scale * x + shift`, one number a channel, commutes with whatever keeps channels apart and
whose weights add up to one: reshape, permute, crops, means, averages, resizes. So it may pass

- *up*, from behind these ops to the layers before them: `W' = scale W, b' = scale b + shift`; a sum
  passes the scale to both sides and the shift to one, a concatenation gives each part its own;
- *down*, to the layers after them: `W' = W scale, b' = b + W shift`, where no zero padding meets
  the shift; if several layers read the value, each takes a copy.

Every value on the way must be read by these ops alone. Regions with one root and one exit are the
business of `fuse`; this is for the rest: tokens, heads, sums of different inputs, shared norms.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from fuseq import ops
from fuseq.affine.operands import constant_of, is_data, per_channel
from fuseq.affine.operations import WEIGHTED, scale_and_shift
from fuseq.affine.refusal import RefusedError
from fuseq.program import Program


@dataclass(frozen=True)
class Channelwise:
    """`scale * x + shift` along a dimension.

    Attributes:
        dim: that holds the channels; not negative.
        scale: float64 `(channels,)`.
        shift: float64 `(channels,)`.
    """

    dim: int
    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Fold:
    """A channelwise op that layers can take over.

    Attributes:
        node: the op.
        operand: what it reads.
        layers: with what each of them takes, at its result (`up`) or its operand.
        between: ops between it and the layers.
        up: whether the layers come before it.
    """

    node: fx.Node
    operand: fx.Node
    layers: tuple[tuple[fx.Node, Channelwise], ...]
    between: tuple[fx.Node, ...]
    up: bool

    def folded(self, program: Program) -> dict[fx.Node, nn.Module]:
        """The layers with what they take over, in float64."""
        fold = _after if self.up else _before
        return {layer: fold(program.get(layer), taken) for layer, taken in self.layers}


def folds(program: Program) -> Iterator[Fold]:
    """Channelwise ops that layers can take over, in graph order; none that are next to one.

    Args:
        program: may be edited between one fold and the next.
    """
    for node in list(program.graph.nodes):
        operation = channelwise(program, node)
        if operation is None:
            continue
        (operand,) = (n for n in node.all_input_nodes if is_data(n))
        if ops.name_of(program, operand) not in WEIGHTED:
            found = _up(program, operand, operation, node)
            if found:
                yield Fold(node, operand, tuple(found.layers), tuple(found.between), up=True)
                continue
        found = _down(program, node, operation)
        if found:
            yield Fold(node, operand, tuple(found.layers), tuple(found.between), up=False)


def channelwise(program: Program, node: fx.Node) -> Channelwise | None:
    """A node as one scale and shift a channel, if it is."""
    name = ops.name_of(program, node)
    if name in ("batch_norm", "batch_norm1d"):
        if getattr(program.get(node), "running_mean", None) is None:
            return None
        return Channelwise(1, *scale_and_shift(program.get(node)))
    if name not in ("add", "sub", "mul", "div"):
        return None
    a, b = node.args
    if is_data(a) == is_data(b) or (name == "div" and not is_data(a)):
        return None
    data, constant = (a, b) if is_data(a) else (b, a)
    assert isinstance(data, fx.Node)
    shape = program.shape(node)
    if program.shape(data) != shape:
        return None
    dim = _channel_dim(program, constant, len(shape))
    try:
        numbers = per_channel(program, constant, shape[dim], rank=len(shape), dim=dim)
    except RefusedError:
        return None
    one, zero = torch.ones_like(numbers), torch.zeros_like(numbers)
    match name:
        case "add":
            return Channelwise(dim, one, numbers)
        case "sub":
            return Channelwise(dim, one, -numbers) if data is a else Channelwise(dim, -one, numbers)
        case "mul":
            return Channelwise(dim, numbers, zero)
        case _:
            return Channelwise(dim, 1 / numbers, zero)


@dataclass(frozen=True)
class _Way:
    layers: list[tuple[fx.Node, Channelwise]]
    between: list[fx.Node]

    @staticmethod
    def joined(ways: Sequence[_Way | None], node: fx.Node) -> _Way | None:
        """All of several ways that go through a node, or None if one of them is blocked."""
        open_ways = [way for way in ways if way]
        if len(open_ways) < len(ways) or not ways:
            return None
        return _Way(
            [layer for way in open_ways for layer in way.layers],
            [node, *(n for way in open_ways for n in way.between)],
        )


def _up(program: Program, value: fx.Node, taken: Channelwise, reader: fx.Node) -> _Way | None:
    """Layers before a value that can take over a channelwise op on it."""
    if any(user is not reader and is_data(user) for user in value.users):
        return None
    name = ops.name_of(program, value)
    if "shape" not in value.meta:
        return None
    if name in WEIGHTED:
        own = len(program.shape(value)) - 1 if name == "linear" else 1
        return _Way([(value, taken)], []) if own == taken.dim else None
    data = [n for n in value.all_input_nodes if is_data(n)]
    if name in ("add", "sub") and len(data) == 2:
        if any(program.shape(n) != program.shape(value) for n in data):
            return None
        first, second = value.args
        no_shift = replace(taken, shift=torch.zeros_like(taken.shift))
        ways = [(first, taken), (second, no_shift)]
        return _Way.joined(
            [_up(program, n, t, value) for n, t in ways if isinstance(n, fx.Node)], value
        )
    if name == "concat" and all(map(is_data, parts := value.all_input_nodes)):
        return _Way.joined(
            [_up(program, n, t, value) for n, t in _parts(program, value, parts, taken)], value
        )
    if len(data) != 1:
        return None
    dim = _dim_before(program, value, taken)
    if dim is None:
        return None
    return _Way.joined([_up(program, data[0], replace(taken, dim=dim), value)], value)


def _parts(
    program: Program, node: fx.Node, parts: Sequence[fx.Node], taken: Channelwise
) -> Iterator[tuple[fx.Node, Channelwise]]:
    """What each operand of a concatenation takes."""
    along = int(node.kwargs["dim"]) % len(program.shape(node))  # type: ignore[arg-type]
    start = 0
    for part in parts:
        if along != taken.dim:
            yield part, taken
            continue
        end = start + program.shape(part)[along]
        yield part, replace(taken, scale=taken.scale[start:end], shift=taken.shift[start:end])
        start = end


def _down(program: Program, value: fx.Node, taken: Channelwise) -> _Way | None:
    """Layers after a value that can take over a channelwise op that gives it."""
    ways: list[_Way | None] = []
    for reader in value.users:
        if reader.op == "output":
            return None
        if not is_data(reader):
            continue
        name = ops.name_of(program, reader)
        if name in WEIGHTED:
            ways.append(_Way([(reader, taken)], []) if _reads(program, reader, taken) else None)
            continue
        dim = _dim_after(program, value, reader, taken)
        way = None if dim is None else _down(program, reader, replace(taken, dim=dim))
        ways.append(_Way.joined([way], reader))
    joined = _Way.joined(ways, value)
    return joined and _Way(joined.layers, joined.between[1:])


def _reads(program: Program, reader: fx.Node, taken: Channelwise) -> bool:
    """Whether a layer can take over a channelwise op before it."""
    layer = program.get(reader)
    if isinstance(layer, nn.Linear):
        return taken.dim == len(program.shape(reader)) - 1
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    padded = isinstance(layer, nn.ConvTranspose2d) or layer.padding not in ((0, 0), "valid")
    return taken.dim == 1 and not (padded and bool(taken.shift.any()))


def _dim_before(program: Program, node: fx.Node, taken: Channelwise) -> int | None:
    """Dimension of the operand of an op that commutes with a channelwise op on its result."""
    source = next(n for n in node.all_input_nodes if is_data(n))
    for dim in range(len(program.shape(source))):
        if _dim_after(program, source, node, replace(taken, dim=dim)) == taken.dim:
            return dim
    return None


def _dim_after(program: Program, value: fx.Node, reader: fx.Node, taken: Channelwise) -> int | None:
    """Dimension of the channels in the result of an op, if the op commutes with `taken`."""
    if "shape" not in reader.meta:
        return None
    before, after, dim = program.shape(value), program.shape(reader), taken.dim
    k = reader.kwargs
    match ops.name_of(program, reader):
        case "reshape":
            return _kept(before, after, dim)
        case "permute":
            dims = [int(d) % len(before) for d in k["dims"]]  # type: ignore[union-attr,arg-type]
            return dims.index(dim)
        case "unsqueeze":
            at = int(k["dim"]) % len(after)  # type: ignore[arg-type]
            return dim + (at <= dim)
        case "mean":
            gone = [int(d) % len(before) for d in k["dim"]]  # type: ignore[union-attr,arg-type]
            if dim in gone:
                return None
            return dim if k["keepdim"] else dim - sum(d < dim for d in gone)
        case "adaptive_avg_pool" | "interpolate" | "interpolate_nearest":
            return dim if dim == 1 else None
        case "avg_pool":
            whole = any(k["padding"]) and k["count_include_pad"]  # type: ignore[arg-type]
            return None if dim != 1 or whole or k["divisor_override"] is not None else dim
        case "slice":
            return None if int(k["dim"]) % len(before) == dim else dim  # type: ignore[arg-type]
        case "pad":
            return None if dim != 1 or bool(taken.shift.any()) or k["mode"] != "constant" else dim
    return None


def _kept(before: Sequence[int], after: Sequence[int], dim: int) -> int | None:
    """Dimension of a reshaped tensor that is dimension `dim` of the tensor before, unchanged."""
    ahead = math.prod(before[:dim])
    for index, size in enumerate(after):
        if math.prod(after[:index]) == ahead and size == before[dim]:
            return index
    return None


def _channel_dim(program: Program, constant: fx.node.Argument, rank: int) -> int:
    """The one dimension along which a constant varies; 1 for a number."""
    named = constant_of(constant)
    if named is None:
        return 1
    shape = program.constant(named).shape
    varies = [rank - len(shape) + i for i, size in enumerate(shape) if size > 1]
    return varies[0] if len(varies) == 1 else 1


def _after(layer: nn.Module, taken: Channelwise) -> nn.Module:
    """A layer with a channelwise op on its result."""
    weight, bias = _weights(layer)
    if isinstance(layer, nn.ConvTranspose2d):
        groups = weight.view(layer.groups, -1, *weight.shape[1:])
        weight = (groups * taken.scale.view(layer.groups, 1, -1, 1, 1)).flatten(0, 1)
    else:
        weight = weight * taken.scale.view(-1, *(1,) * (weight.dim() - 1))
    return _with(layer, weight, bias * taken.scale + taken.shift)


def _before(layer: nn.Module, taken: Channelwise) -> nn.Module:
    """A layer with a channelwise op on its operand."""
    weight, bias = _weights(layer)
    if isinstance(layer, nn.Linear):
        return _with(layer, weight * taken.scale, bias + weight @ taken.shift)
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    if isinstance(layer, nn.ConvTranspose2d):  # never meets a shift: it pads
        return _with(layer, weight * taken.scale.view(-1, 1, 1, 1), bias)
    grouped = weight.view(layer.groups, -1, *weight.shape[1:])
    scale, shift = (t.view(layer.groups, 1, -1, 1, 1) for t in (taken.scale, taken.shift))
    moved = (grouped * shift).sum((2, 3, 4)).flatten()
    return _with(layer, (grouped * scale).flatten(0, 1), bias + moved)


def _weights(layer: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    weight = layer.weight.detach().double()
    if layer.bias is not None:
        return weight, layer.bias.detach().double()
    transposed = isinstance(layer, nn.ConvTranspose2d)
    outputs = layer.out_channels if transposed else len(weight)
    return weight, torch.zeros(outputs, dtype=torch.float64)


def _with(layer: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    new = copy.copy(layer)
    new._parameters = {
        "weight": nn.Parameter(weight, requires_grad=False),
        "bias": nn.Parameter(bias, requires_grad=False) if bias.any() else None,
    }
    return new
