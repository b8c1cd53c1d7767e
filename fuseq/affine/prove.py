"""The float64 check of each fused region, and the certificate it leaves.

The algebra says the two sides are the same affine map. Two different affine maps agree only on a
set of measure zero, so one Gaussian input refutes a wrong fusion; the zero input shows the bias
alone. Both run at a size around the window, at a second one with other remainders and borders,
and at the captured size where the map is smaller than the window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fuseq import ops
from fuseq.affine.emit import Plan
from fuseq.affine.operands import constant_of
from fuseq.affine.region import Region
from fuseq.macs import macs
from fuseq.program import Program, copied

LIMIT = 1e-11
"""Allowed `max |error| / max |output|`; float64 rounding of a region gives about 1e-15."""

ANYWHERE = "all sizes"

LAYERS = {
    "conv2d": "convolution",
    "conv_transpose2d": "transposed convolution",
    "linear": "linear layer",
}
"""What a region became, for people."""

Step = Callable[..., Any]


@dataclass(frozen=True)
class FusedNode:
    """An operation that became part of a layer.

    Attributes:
        name: of the node.
        op: its canonical name.
        source: `file:line`, or the empty string.
        scope: path of the module of the user's that ran it, or the empty string.
    """

    name: str
    op: str
    source: str
    scope: str


@dataclass(frozen=True)
class Certificate:
    """What is known of one fused region.

    Attributes:
        module: path of the new layer.
        op: its canonical name.
        nodes: what it replaces, in graph order.
        root: name of the value it reads.
        source: `file:line` of the value it computes, or the empty string.
        rules: exactness rules that it rests on.
        residual: largest `max |error| / max |output|` of the float64 check.
        validity: "all sizes" (that leave something of each cropped map), or the only height
            and width the fusion holds for.
        macs_before: multiply-accumulates at the captured size.
        macs_after: the same, fused.
        parameters_before: trainable numbers.
        parameters_after: the same, fused.
    """

    module: str
    op: str
    nodes: tuple[FusedNode, ...]
    root: str
    source: str
    rules: tuple[str, ...]
    residual: float
    validity: str
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int

    def __str__(self) -> str:
        place = f" ({self.source})" if self.source else ""
        return (
            f"`{self.module}`{place}: {len(self.nodes)} nodes -> 1 {LAYERS[self.op]}, "
            f"{self.macs_before / 1e6:.1f} -> {self.macs_after / 1e6:.1f} MMAC, "
            f"float64 residual {self.residual:.1e}, {self.validity}"
        )


def certified(program: Program, node: fx.Node, certificates: dict[str, Certificate]) -> Certificate:
    """What is known of a node: a layer that was fused before stands for what it replaced."""
    if node.op == "call_module" and str(node.target) in certificates:
        return certificates[str(node.target)]
    work, parameters = macs(program, node), _parameters(program, node)
    name, path = ops.name_of(program, node), str(node.target)
    named = (FusedNode(node.name, name, program.source(node), node.meta.get("scope") or ""),)
    return Certificate(
        path, name, named, "", "", (), 0.0, ANYWHERE, work, work, parameters, parameters
    )


def _parameters(program: Program, node: fx.Node) -> int:
    held = sum(p.numel() for p in program.get(node).parameters()) if node.op == "call_module" else 0
    constants = [program.constant(n) for n in node.all_input_nodes if n.op == "get_attr"]
    return held + sum(c.numel() for c in constants if isinstance(c, nn.Parameter))


def residual(program: Program, region: Region, plan: Plan, layer: nn.Module) -> float:
    """Largest relative float64 difference between a region and what replaces it.

    Args:
        program: that holds the region; of any dtype.
        region: the original operations.
        plan: what replaces them.
        layer: of the plan, in float64.

    Returns:
        `max |fused - region| / max |region|` over the probes; infinite if a shape differs or a
        value is not finite.
    """
    steps = [(node, step_of(program, node)) for node in region.nodes]
    captured = program.shape(region.root)
    differences = [
        _difference(region, steps, plan, layer, shape)
        for shape in _probe_shapes(program, region, plan)
    ]
    compared = [d for d in differences if d is not None]
    if not compared:
        last = _difference(region, steps, plan, layer, captured)
        return float("inf") if last is None else last
    return max(compared)


def _difference(
    region: Region,
    steps: list[tuple[fx.Node, Step]],
    plan: Plan,
    layer: nn.Module,
    shape: tuple[int, ...],
) -> float | None:
    """The residual at one shape of the root, or None if the region itself does not run there."""
    x = torch.zeros(2, *shape[1:], dtype=torch.float64)
    torch.nn.init.normal_(x[0], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        try:
            expected = _run(region, steps, x)
        except RuntimeError:
            return None
        actual = plan.run(layer, x)
    if actual.shape != expected.shape or not torch.isfinite(actual).all():
        return float("inf")
    error = float((actual - expected).abs().max())
    return error / float(expected.abs().max()) if error else 0.0


def _probe_shapes(program: Program, region: Region, plan: Plan) -> list[tuple[int, ...]]:
    form, captured = plan.form, program.shape(region.root)
    if form.tokens:
        return [(2, *(min(n, 3) for n in captured[1:-1]), captured[-1])]
    if form.size:
        return [(2, captured[1], *form.size)]
    divides = any(ops.name_of(program, node) == "pixel_unshuffle" for node in region.nodes)
    near: list[int] = []
    for size, axis in zip(captured[2:], form.axes, strict=True):
        window = max(axis.taps[-1], 0) - min(axis.taps[0], 0) + 2 * axis.stride + 2
        window = max(window, -axis.extent + axis.stride)
        near.append(size - axis.stride * ((size - window) // axis.stride))
    steps = [axis.stride if divides else 1 for axis in form.axes]
    sizes = [(near[0], near[1]), (near[0] + steps[0], near[1] + 3 * steps[1])]
    small = (min(captured[2], near[0]), min(captured[3], near[1]))
    if small != sizes[0]:
        sizes.append(small)
    return [(2, captured[1], *size) for size in sizes]


def _run(region: Region, steps: list[tuple[fx.Node, Step]], x: Tensor) -> Tensor:
    values: dict[fx.Node, Any] = {region.root: x}

    def value(node: fx.Node) -> Any:
        if node not in values and node.target in ops.SHAPE_ARITHMETIC:
            assert callable(node.target)
            values[node] = node.target(*fx.node.map_arg(node.args, value))
        return values.get(node, node)

    for node, step in steps:
        attributes = fx.node.map_arg(node.kwargs, value)
        values[node] = step(*fx.node.map_arg(node.args, value), **attributes)
    result: Tensor = values[region.exit]
    return result


def step_of(program: Program, node: fx.Node) -> Step:
    """A node as a function of its operands, with its weights and constants in float64."""
    if node.op == "call_module":
        layer: Step = copied(program.get(node), {}).double()
        return layer
    assert callable(node.target)
    function = _write if node.target is ops.slice_scatter else node.target
    constants = {
        n: program.constant(named).detach().double()
        for n in node.all_input_nodes
        if (named := constant_of(n)) is not None
    }

    def step(*args: Any, **attributes: Any) -> Any:
        filled = fx.node.map_arg(args, lambda n: constants.get(n, n))
        return function(*filled, **attributes)

    return step


def _write(x: Tensor, source: Tensor, dim: int, start: int, end: int, step: int) -> Tensor:
    """`slice_scatter` that repeats the source, so that it runs at every size."""
    written = x.clone()
    written[(slice(None),) * dim + (slice(start, end, step),)] = source
    return written
