"""Give a program the structure the target will run, before any range is measured.

What is trained and calibrated must be what is deployed: a requantize stands on every input edge of
an op that ties its inputs to one grid (merging the grids instead costs several dB, because a
narrow value that others also read is spread over a wide grid), and ops the target has no kernel
for are spelled with ops it has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import fx, nn

import fuseq
from fuseq import ops
from fuseq.program import Program, unused_name
from fuseq.quant.profile import Profile


@dataclass(frozen=True)
class Legalize(fuseq.Pass):
    """Requantize at tied edges; decompose what the target lacks.

    Attributes:
        profile: the target's rules; without them nothing is changed.
    """

    name: ClassVar[str] = "legalize"
    promise: ClassVar[fuseq.Promise] = fuseq.SameFunction()
    profile: Profile | None = field(default=None, repr=False)

    def run(self, program: Program) -> int:
        """Edit the program; returns the number of nodes added or replaced."""
        if self.profile is None:
            return 0
        return (
            _decompose(program, self.profile)
            + _fixed_pools(program)
            + _keep_dimensions(program)
            + _flatten_linears(program)
            + _requantize_ties(program, self.profile)
        )


def _decompose(program: Program, profile: Profile) -> int:
    count = 0
    for node in list(program.graph.nodes):
        name = ops.name_of(program, node)
        if name not in profile.decompose:
            continue
        # A target may have the norm and not its weight.
        has_norm = name == "instance_norm" and profile.computes(name)
        (_norm_without_weight if has_norm else _DECOMPOSITIONS[name])(program, node)
        if not node.users:  # else it is spelled that way already
            program.graph.erase_node(node)
            count += 1
    return count


def _fixed_pools(program: Program) -> int:
    """An adaptive pool of a fixed size is a pool where all its windows are equal."""
    found = 0
    if any(dim >= 2 for _, dim in program.origin.dynamic):
        return 0
    for node in list(program.graph.nodes):
        if ops.name_of(program, node) != "adaptive_avg_pool":
            continue
        source = node.all_input_nodes[0]
        sizes, outputs = program.shape(source)[-2:], program.shape(node)[-2:]
        if any(n % m for n, m in zip(sizes, outputs, strict=True)):
            continue
        window = tuple(n // m for n, m in zip(sizes, outputs, strict=True))
        attributes: dict[str, Any] = {
            "kernel_size": window,
            "stride": window,
            "padding": (0, 0),
            "ceil_mode": False,
            "count_include_pad": True,
            "divisor_override": None,
        }
        with program.graph.inserting_before(node):
            pool = program.graph.call_function(F.avg_pool2d, (source,), attributes)
        pool.meta = dict(node.meta)
        node.replace_all_uses_with(pool)
        program.graph.erase_node(node)
        found += 1
    return found


def _keep_dimensions(program: Program) -> int:
    """Global average pools give `[N, C, 1, 1]`, the form integer kernels have; then reshape."""
    nodes = [
        n
        for n in program.graph.nodes
        if ops.name_of(program, n) == "mean"
        and n.kwargs["dim"] == (2, 3)
        and not n.kwargs["keepdim"]
        and len(program.shape(n.all_input_nodes[0])) == 4
    ]
    for node in nodes:
        channels = program.shape(node)[1]
        with program.graph.inserting_after(node):
            flat = program.graph.call_function(torch.reshape, (node,), {"shape": (-1, channels)})
        flat.meta = dict(node.meta)
        node.replace_all_uses_with(flat, lambda user, flat=flat: user is not flat)
        node.kwargs = {**node.kwargs, "keepdim": True}
    return len(nodes)


def _flatten_linears(program: Program) -> int:
    """Linear layers take `[rows, in]`, the form integer kernels with a bias have; then reshape."""
    nodes = [
        n
        for n in program.graph.nodes
        if ops.name_of(program, n) == "linear" and len(program.shape(n)) != 2
    ]
    for node in nodes:
        source, shape = node.all_input_nodes[0], program.shape(node)
        with program.graph.inserting_before(node):
            rows = program.graph.call_function(
                torch.reshape, (source,), {"shape": (-1, program.shape(source)[-1])}
            )
            free = bool(program.origin.dynamic)
            sizes = [
                program.graph.call_function(ops.sym_size, (source, d)) if free else size
                for d, size in enumerate(shape[:-1])
            ]
        rows.meta = dict(source.meta)
        node.replace_input_with(source, rows)
        with program.graph.inserting_after(node):
            restored = program.graph.call_function(
                torch.reshape, (node,), {"shape": (*sizes, shape[-1])}
            )
        restored.meta = dict(node.meta)
        node.replace_all_uses_with(restored, lambda user, restored=restored: user is not restored)
    return len(nodes)


def _requantize_ties(program: Program, profile: Profile) -> int:
    edges = [
        (node, operand)
        for node in program.graph.nodes
        if ops.name_of(program, node) in profile.tied_inputs
        for operand in dict.fromkeys(node.all_input_nodes)
        if ops.name_of(program, operand) not in ("requantize", "constant")
    ]
    for node, operand in edges:
        _requantize(program, node, operand)
    return len(edges)


def _requantize(program: Program, node: fx.Node, operand: fx.Node) -> None:
    with program.graph.inserting_before(node):
        edge = program.graph.call_function(ops.requantize, (operand,))
    edge.meta = dict(operand.meta)
    node.replace_input_with(operand, edge)


def _silu(program: Program, node: fx.Node) -> None:
    """`silu(x) = x * sigmoid(x)`."""
    _gated(program, node, torch.sigmoid)


def _hardswish(program: Program, node: fx.Node) -> None:
    """`hardswish(x) = x * hardsigmoid(x)`."""
    _gated(program, node, F.hardsigmoid)


def _gated(program: Program, node: fx.Node, function: Callable[..., Any]) -> None:
    with program.graph.inserting_before(node):
        gate = program.graph.call_function(function, (node.args[0],))
        product = program.graph.call_function(torch.mul, (node.args[0], gate))
    gate.meta, product.meta = dict(node.meta), dict(node.meta)
    node.replace_all_uses_with(product)


def _hardsigmoid(program: Program, node: fx.Node) -> None:
    """`hardsigmoid(x) = clamp(x + 3, 0, 6) / 6`."""
    graph = program.graph
    with graph.inserting_before(node):
        raised = graph.call_function(torch.add, (node.args[0], 3.0))
        cut = graph.call_function(torch.clamp, (raised,), {"min": 0.0, "max": 6.0})
        scaled = graph.call_function(torch.mul, (cut, 1 / 6))
    for step in (raised, cut, scaled):
        step.meta = dict(node.meta)
    node.replace_all_uses_with(scaled)


def _norm_without_weight(program: Program, node: fx.Node) -> None:
    """An instance norm without weight and bias, then those as a depthwise 1x1 convolution."""
    source, norm = node.all_input_nodes[0], program.get(node)
    assert isinstance(norm, nn.InstanceNorm2d)
    if norm.weight is None:
        return
    plain = nn.InstanceNorm2d(norm.num_features, norm.eps).eval()
    normed = program.insert_module(f"{node.name}.norm", plain, node, source)
    result = program.insert_module(f"{node.name}.affine", _affine(norm), node, normed)
    node.replace_all_uses_with(result)


def _instance_norm(program: Program, node: fx.Node) -> None:
    """`(x - mean) * rsqrt(variance + eps)`, then weight and bias as a depthwise 1x1 convolution.

    A convolution holds every channel's weight on a scale of its own and the bias in int32, rounds
    the map once less than a product and a sum, and is trained as all others are.
    """
    norm = program.get(node)
    assert isinstance(norm, nn.InstanceNorm2d)
    normed = _normalized(program, node, (2, 3), norm.eps)
    if norm.weight is not None:
        normed = program.insert_module(f"{node.name}.affine", _affine(norm), node, normed)
    node.replace_all_uses_with(normed)


def _layer_norm(program: Program, node: fx.Node) -> None:
    """`(x - mean) * rsqrt(variance + eps)` over the last dimensions, then weight and bias."""
    norm, graph = program.get(node), program.graph
    assert isinstance(norm, nn.LayerNorm)
    rank = len(program.shape(node))
    dims = tuple(range(rank - len(norm.normalized_shape), rank))
    normed = _normalized(program, node, dims, norm.eps)
    for name, function in (("weight", torch.mul), ("bias", torch.add)):
        value = getattr(norm, name)
        if value is not None:
            path = unused_name(program.module, f"{node.name}_{name}")
            program.module.register_buffer(path, value.detach().clone())
            with graph.inserting_before(node):
                constant = graph.create_node("get_attr", path)
                normed = graph.call_function(function, (normed, constant))
            constant.meta = {"shape": tuple(value.shape), "dtype": value.dtype}
            normed.meta = dict(node.meta)
    node.replace_all_uses_with(normed)


def _normalized(program: Program, node: fx.Node, dims: tuple[int, ...], eps: float) -> fx.Node:
    """The operand of a norm less its mean, over the root of its variance."""
    source, graph = node.all_input_nodes[0], program.graph
    over: dict[str, Any] = {"dim": dims, "keepdim": True}
    with graph.inserting_before(node):
        mean = graph.call_function(torch.mean, (source,), over)
        centered = graph.call_function(torch.sub, (source, mean))
        square = graph.call_function(torch.mul, (centered, centered))
        variance = graph.call_function(torch.mean, (square,), over)
        stable = graph.call_function(torch.add, (variance, eps))
        factor = graph.call_function(torch.rsqrt, (stable,))
        normed = graph.call_function(torch.mul, (centered, factor))
    shape = program.shape(node)
    for step in (centered, square, normed):
        step.meta = dict(node.meta)
    for statistic in (mean, variance, stable, factor):
        pooled = tuple(1 if d in dims else n for d, n in enumerate(shape))
        statistic.meta = {**node.meta, "shape": pooled}
    return normed


def _affine(norm: nn.InstanceNorm2d) -> nn.Conv2d:
    channels = norm.num_features
    conv = nn.Conv2d(channels, channels, 1, groups=channels, device="meta")
    weight = norm.weight.detach().clone().reshape(channels, 1, 1, 1)
    conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(norm.bias.detach().clone())
    return conv.eval()


_DECOMPOSITIONS: dict[str, Callable[[Program, fx.Node], None]] = {
    "silu": _silu,
    "hardswish": _hardswish,
    "hardsigmoid": _hardsigmoid,
    "instance_norm": _instance_norm,
    "layer_norm": _layer_norm,
}
