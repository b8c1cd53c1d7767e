"""`fuse-gates`: sibling convolutions whose outputs meet in a product become one wide convolution.

    f(conv_a(x)) * g(conv_b(x))  ==  f(t[:, :A]) * g(t[:, A:]),     t = conv_ab(x)

with the rows of both kernels in one. It is exact for equal strides where the kernels, the smaller
one surrounded by zeros, read the same positions. Activations that both factors share are computed
once, on t, before the slices; a concat of two neighbouring slices of one value is that value
(`concat(split(t)) == t`), so the skip concat of a gated encoder disappears.

One convolution instead of two is no saving by itself, and a slice costs a copy of the map. It pays
where channels do not fill the blocks that a target computes at a time (two halves of a block make
one), or where a concat disappears. The block is a fact of the target's profile, `channel_block`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import fx, nn

import fuseq
from fuseq import ops
from fuseq.affine.refusal import Refusal
from fuseq.program import Program
from fuseq.quant.profile import Profile
from fuseq.requirements import batch_norms_folded, not_equalized, not_legalized

POINTWISE = frozenset(
    "relu clamp sigmoid tanh hardsigmoid hardswish silu leaky_relu gelu prelu".split()
)
"""Ops that may stand between a convolution and the product."""


@dataclass(frozen=True)
class MergedGate:
    """Two convolutions that became one.

    Attributes:
        convolutions: names of the two.
        product: name of the product they meet in.
        module: path of the wide convolution.
        joined: whether a concat of both disappeared with them.
    """

    convolutions: tuple[str, str]
    product: str
    module: str
    joined: bool


@dataclass(frozen=True)
class Factor:
    """One operand of a product.

    Attributes:
        conv: the convolution it comes from.
        values: what stands between: the convolution, each activation, and at last the operand.
    """

    conv: fx.Node
    values: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Gate:
    """Two convolutions of one input, and their product.

    Attributes:
        product: the multiplication.
        first: the factor whose channels come first in the wide convolution.
        second: the other one.
        shared: pairs of values that both compute alike, the convolutions first.
        joined: whether a concat takes a shared pair side by side.
    """

    product: fx.Node
    first: Factor
    second: Factor
    shared: tuple[tuple[fx.Node, fx.Node], ...]
    joined: bool


@dataclass(frozen=True)
class FuseGates(fuseq.Pass):
    """Merge sibling convolutions whose outputs meet in a product, where the target gains by it.

    Leaves a `MergedGate` for each pair it merged and a `Refusal` for each it left alone.

    Attributes:
        always: merge every gate that can be, whatever the target gains or loses.
        profile: the target's rules.
    """

    name: ClassVar[str] = "fuse-gates"
    promise: ClassVar[fuseq.Promise] = fuseq.SameFunction()
    requires: ClassVar[tuple[fuseq.Predicate, ...]] = (
        batch_norms_folded,
        not_legalized,
        not_equalized,
    )

    always: bool = False
    profile: Profile | None = field(default=None, repr=False)

    def run(self, program: Program) -> int:
        """Edit the program; returns the number of gates merged and of concats that disappeared."""
        merged: dict[fx.Node, Gate] = {}
        for gate in list(_gates(program)):
            before = [merged[f.conv] for f in (gate.first, gate.second) if f.conv in merged]
            if len(before) == 2 and before[0] is before[1]:
                continue
            refusal = _taken(program, gate, before) if before else self._refusal(program, gate)
            if refusal:
                program.note(refusal)
                continue
            program.note(_merge(program, gate))
            merged |= {gate.first.conv: gate, gate.second.conv: gate}
        return len(merged) // 2 + _join_slices(program)

    def _refusal(self, program: Program, gate: Gate) -> Refusal | None:
        """Why a gate stays as it is, or None."""
        reason = _differing_geometry(program, gate)
        if reason:
            return _refused(program, gate, "siblings", reason)
        reason = self._lost_activation(program, gate) or self._price(program, gate)
        if reason and not self.always:
            return _refused(program, gate, "cost", reason, "fuse-gates{always=true}")
        return None

    def _lost_activation(self, program: Program, gate: Gate) -> str | None:
        """An activation that a convolution absorbs, and a slice of one would not."""
        if self.profile is None:
            return None
        absorbing = {name for name, makers in self.profile.absorbed.items() if "conv2d" in makers}
        for factor in (gate.first, gate.second):
            own = factor.values[len(gate.shared) :]
            if len(gate.shared) == 1 and own and ops.name_of(program, own[0]) in absorbing:
                return (
                    f"`{own[0].name}` is computed inside its convolution, behind a slice it is not"
                )
        return None

    def _price(self, program: Program, gate: Gate) -> str | None:
        """Why merging does not pay, or None."""
        if self.profile is None:
            return "no target is named, and without integers merging seldom pays"
        block, name = self.profile.channel_block, self.profile.name
        if block == 0:
            return (
                f"the profile of '{name}' names no block of channels, so merging never pays there"
            )
        a, b = _layers(program, gate)
        if a.kernel_size != b.kernel_size:
            return f"kernels {a.kernel_size} and {b.kernel_size}: zeros would be multiplied"
        channels = (a.out_channels, b.out_channels)
        if not gate.joined and not any(count % block for count in channels):
            return f"'{name}' computes {block} channels at a time: {channels} leave no part empty"
        return None


def _taken(program: Program, gate: Gate, before: list[Gate]) -> Refusal:
    reason = f"a factor of it is merged already, for `{before[0].product.name}`"
    return _refused(program, gate, "siblings", reason)


def _refused(program: Program, gate: Gate, code: str, reason: str, fix: str = "") -> Refusal:
    root = gate.first.conv.all_input_nodes[0]
    source = program.source(gate.product)
    return Refusal(code, gate.product.name, source, root.name, gate.product.name, reason, fix)


# --- finding ---


def _gates(program: Program) -> Iterator[Gate]:
    neighbours = _neighbours(program)
    for product in program.graph.nodes:
        if ops.name_of(program, product) != "mul" or len(product.all_input_nodes) != 2:
            continue
        first, second = (_factor(program, operand) for operand in product.all_input_nodes)
        if first is None or second is None or first.conv is second.conv:
            continue
        if first.conv.all_input_nodes == second.conv.all_input_nodes:
            yield _gate(product, first, second, neighbours)


def _factor(program: Program, operand: fx.Node) -> Factor | None:
    values = [operand]
    while ops.name_of(program, values[0]) in POINTWISE:
        values.insert(0, values[0].all_input_nodes[0])
    return Factor(values[0], tuple(values)) if _is_conv(program, values[0]) else None


def _is_conv(program: Program, node: fx.Node) -> bool:
    return ops.name_of(program, node) == "conv2d" and len(program.shape(node)) == 4


def _neighbours(program: Program) -> frozenset[tuple[fx.Node, fx.Node]]:
    """Pairs of values that some concat of channels takes one after the other."""
    concats = [n for n in program.graph.nodes if ops.name_of(program, n) == "concat"]
    operands: list[Any] = [n.args[0] for n in concats if n.kwargs["dim"] == 1]
    return frozenset(pair for values in operands for pair in itertools.pairwise(values))


def _gate(
    product: fx.Node,
    first: Factor,
    second: Factor,
    neighbours: frozenset[tuple[fx.Node, fx.Node]],
) -> Gate:
    shared = [(first.conv, second.conv)]
    for a, b in zip(first.values[1:], second.values[1:], strict=False):
        if a.op == "call_module" or (a.target, a.kwargs) != (b.target, b.kwargs):
            break
        shared.append((a, b))
    if any((b, a) in neighbours for a, b in shared):
        first, second = second, first
        shared = [(b, a) for a, b in shared]
    joined = any(pair in neighbours for pair in shared)
    return Gate(product, first, second, tuple(shared), joined)


# --- merging ---


def _layers(program: Program, gate: Gate) -> tuple[nn.Conv2d, nn.Conv2d]:
    a, b = program.get(gate.first.conv), program.get(gate.second.conv)
    assert isinstance(a, nn.Conv2d)
    assert isinstance(b, nn.Conv2d)
    return a, b


def _differing_geometry(program: Program, gate: Gate) -> str | None:
    """Why no single convolution reads the same positions for both factors, or None."""
    a, b = _layers(program, gate)
    if a.groups != 1 or b.groups != 1:
        return f"groups {a.groups} and {b.groups}: channels of one factor would not lie together"
    if a.stride != b.stride:
        return f"strides {a.stride} and {b.stride} differ"
    if not all(_aligned(a, b, axis) for axis in (0, 1)):
        return (
            f"kernels {a.kernel_size} and {b.kernel_size}, padding {a.padding} and {b.padding}, "
            f"dilation {a.dilation} and {b.dilation} do not read positions of one kernel"
        )
    return None


def _aligned(a: nn.Conv2d, b: nn.Conv2d, axis: int) -> bool:
    """Whether the smaller kernel stands on the middle taps of the larger one.

    Kernel size k, dilation d and padding p give floor((H + 2p - d(k - 1) - 1) / s) + 1 positions
    that begin at -p: both agree, at every size, where 2(p - p') = d(k - k') with k - k' even.
    """
    large, small = (a, b) if a.kernel_size[axis] >= b.kernel_size[axis] else (b, a)
    wider = large.kernel_size[axis] - small.kernel_size[axis]
    dilation = large.dilation[axis]
    if small.kernel_size[axis] > 1 and small.dilation[axis] != dilation:
        return False
    padding = int(large.padding[axis]) - int(small.padding[axis])
    return wider % 2 == 0 and 2 * padding == dilation * wider


def _merge(program: Program, gate: Gate) -> MergedGate:
    a, b = _layers(program, gate)
    pair = (gate.first.conv, gate.second.conv)
    anchor = min(pair)
    name = f"{gate.first.conv.target}_and_{str(gate.second.conv.target).rpartition('.')[2]}"
    wide = program.insert_module(name, _wide(a, b), anchor, *anchor.all_input_nodes)
    batch, _, height, width = program.shape(anchor)
    shape = (batch, a.out_channels + b.out_channels, height, width)
    value = wide
    for first, second in gate.shared:
        if first.op == "call_function":
            widened = {first.all_input_nodes[0]: value}
            with program.graph.inserting_after(value):
                value = program.graph.node_copy(first, widened.__getitem__)
        value.meta = {**first.meta, "shape": shape}
        for old, start, end in (
            (second, a.out_channels, shape[1]),
            (first, 0, a.out_channels),
        ):
            with program.graph.inserting_after(value):
                part = _slice(program, value, start, end)
            part.meta = dict(old.meta)
            old.replace_all_uses_with(part)
    return MergedGate(
        (pair[0].name, pair[1].name), gate.product.name, str(wide.target), gate.joined
    )


def _wide(a: nn.Conv2d, b: nn.Conv2d) -> nn.Conv2d:
    height, width = (max(sizes) for sizes in zip(a.kernel_size, b.kernel_size, strict=True))
    larger = [a if a.kernel_size[i] >= b.kernel_size[i] else b for i in (0, 1)]
    wide = nn.Conv2d(
        a.in_channels,
        a.out_channels + b.out_channels,
        (height, width),
        stride=(a.stride[0], a.stride[1]),
        padding=(int(larger[0].padding[0]), int(larger[1].padding[1])),
        dilation=(larger[0].dilation[0], larger[1].dilation[1]),
        bias=a.bias is not None or b.bias is not None,
        device="meta",
    )
    weights = []
    for layer in (a, b):
        rows = (height - layer.kernel_size[0]) // 2
        columns = (width - layer.kernel_size[1]) // 2
        weights.append(F.pad(layer.weight.detach(), (columns, columns, rows, rows)))
    wide.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
    if wide.bias is not None:
        biases = [
            layer.weight.new_zeros(layer.out_channels) if layer.bias is None else layer.bias
            for layer in (a, b)
        ]
        wide.bias = nn.Parameter(torch.cat(biases).detach(), requires_grad=False)
    return wide.eval()


# --- concat(split(t)) == t ---


def _slice(program: Program, value: fx.Node, start: int, end: int) -> fx.Node:
    attributes: dict[str, Any] = {"dim": 1, "start": start, "end": end, "step": 1}
    return program.graph.call_function(ops.slice_tensor, (value,), attributes)


def _join_slices(program: Program) -> int:
    """Take neighbouring slices in concats together; returns the number of concats changed."""
    concats = [n for n in program.graph.nodes if ops.name_of(program, n) == "concat"]
    return sum(_join(program, n) for n in concats if n.kwargs["dim"] == 1)


def _join(program: Program, concat: fx.Node) -> bool:
    runs: list[tuple[fx.Node, int, int]] = []
    for operand in concat.args[0]:  # type: ignore[union-attr]
        assert isinstance(operand, fx.Node)
        source, start, end = _channels(program, operand)
        if runs and runs[-1][0] is source and runs[-1][2] == start > 0:
            start = runs.pop()[1]
        runs.append((source, start, end))
    if len(runs) == len(concat.args[0]):  # type: ignore[arg-type]
        return False
    with program.graph.inserting_before(concat):
        parts = [
            source
            if (start, end) == (0, program.shape(source)[1])
            else _slice(program, source, start, end)
            for source, start, end in runs
        ]
    if len(parts) == 1:
        concat.replace_all_uses_with(parts[0])
    else:
        concat.args = (tuple(parts),)
    return True


def _channels(program: Program, node: fx.Node) -> tuple[fx.Node, int, int]:
    """The value a node takes channels of, and which: of itself all, if it is no channel slice."""
    if ops.name_of(program, node) == "slice" and node.kwargs["dim"] == 1:
        start, end, step = (node.kwargs[key] for key in ("start", "end", "step"))
        if step == 1 and isinstance(start, int) and isinstance(end, int):
            source = node.all_input_nodes[0]
            return (source, *slice(start, end).indices(program.shape(source)[1])[:2])
    return node, 0, program.shape(node)[1]
