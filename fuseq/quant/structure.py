"""Which values of a program are quantized for a target, and which of them share one grid.

Purely structural: shapes and ops, no data. A value has a grid if the op that makes it, or an op
that reads it, computes in integers. Ops that only move values pass grids through, in both
directions. Grids are shared by unification (union-find over values).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from fuseq import ops
from fuseq.program import Program
from fuseq.quant.grid import Grid
from fuseq.quant.profile import Profile


@dataclass(frozen=True)
class Structure:
    """Quantization structure of a program.

    Attributes:
        group: name of each quantized value -> name of the value that stands for its group.
        dtypes: group -> dtype of its grid.
        absorbed: as in `QuantizationTable`.
        fixed: group -> (scale, zero point) the target demands.
        integer: names of nodes that take integers and give integers.
        islands: names of the other nodes that compute: they run in float.
        symmetric: dtypes whose grids have zero point 0.
    """

    group: Mapping[str, str]
    dtypes: Mapping[str, str]
    absorbed: Mapping[str, str]
    fixed: Mapping[str, tuple[float, int]]
    integer: frozenset[str]
    islands: tuple[str, ...]
    symmetric: frozenset[str]


@dataclass(frozen=True)
class FloatIslands:
    """Compute nodes that stay float in a quantized program, for its history.

    Attributes:
        islands: their names.
    """

    islands: tuple[str, ...]


def find_structure(
    program: Program,
    profile: Profile,
    keep: frozenset[str] = frozenset(),
    wide: frozenset[str] = frozenset(),
    stepped: frozenset[str] = frozenset(),
) -> Structure:
    """Quantization structure of a legalized program.

    Args:
        program: canonical, batch norms folded.
        profile: the target's rules.
        keep: names of nodes that stay float.
        wide: names of nodes whose values have grids of 16 bits, and with them whatever shares
            their grids. The activation computed on a node's accumulator is its value.
        stepped: names of nodes whose values have grids, whoever reads them.
    """
    structure = _structure(program, profile, keep, wide, stepped, frozenset())
    # A layer whose operands have 8 bits cannot write 16: there the requantize is an op of its own.
    apart = frozenset(
        edge
        for edge in structure.absorbed.values()
        if edge in _requantizes(program)
        and structure.dtypes[structure.group[edge]] != profile.activation
    )
    if not apart or not profile.one_dtype:
        return structure
    return _structure(program, profile, keep, wide, stepped, apart)


def _requantizes(program: Program) -> set[str]:
    edges = program.graph.find_nodes(op="call_function", target=ops.requantize)
    return {edge.name for edge in edges}


def _structure(
    program: Program,
    profile: Profile,
    keep: frozenset[str],
    wide: frozenset[str],
    stepped: frozenset[str],
    apart: frozenset[str],
) -> Structure:
    """As `find_structure`; the requantizes `apart` are ops of their own."""
    nodes = [n for n in program.graph.nodes if _is_value(n)]
    names = {n: ops.name_of(program, n) for n in nodes}
    integer = {n for n in nodes if profile.computes(names[n]) and n.name not in keep}
    # What multiplies by a mask of booleans, or by a size, stays float: those have no grid.
    integer = {
        n
        for n in integer
        if all(
            a in names or a.op == "get_attr" for a in flat_arguments(n) if isinstance(a, fx.Node)
        )
    }
    absorbed = _absorbed([n for n in nodes if n.name not in apart], names, profile, integer)
    inner = {n.name for n in absorbed}

    quantized = {n for n in integer if n.name not in inner}
    quantized |= {a for n in integer for a in operands(n) if a.name not in inner}
    quantized |= set(absorbed.values()) | {n for n in nodes if n.name in stepped}
    moving = [n for n in nodes if names[n] in profile.same_grid and n.name not in keep]
    moving = [n for n in moving if n not in absorbed.values()]
    pairs = [(n, n.args[0]) for n in moving if isinstance(n.args[0], fx.Node)]
    grown = True
    while grown:
        grown = False
        for a, b in pairs:
            if (a in quantized) != (b in quantized):
                quantized |= {a, b}
                grown = True

    parent: dict[fx.Node, fx.Node] = {n: n for n in quantized}

    def find(node: fx.Node) -> fx.Node:
        while parent[node] is not node:
            node = parent[node]
        return node

    ties = [(a, b) for a, b in pairs if a in quantized and b in quantized]
    ties += [
        (n, a)
        for n in quantized
        if names[n] in profile.tied_inputs and n in integer
        for a in operands(n)
    ]
    order = {n: i for i, n in enumerate(nodes)}
    for a, b in ties:
        first, second = sorted((find(a), find(b)), key=order.__getitem__)
        parent[second] = first

    widened = {find(n) for n in quantized if n.name in wide}
    widened |= {find(b) for a, b in absorbed.items() if a.name in wide}
    dtypes = {
        find(n).name: profile.wide if find(n) in widened else profile.activation for n in quantized
    }
    fixed = {
        find(n).name: profile.fixed[names[n]][dtypes[find(n).name]]
        for n in quantized & integer
        if dtypes[find(n).name] in profile.fixed.get(names[n], {})
    }
    computing = integer | set(absorbed.values()) | {n for n in moving if n in quantized}
    islands = tuple(
        n.name for n in nodes if n not in computing and names[n] not in ("input", "requantize")
    )
    group = {n.name: find(n).name for n in nodes if n in quantized}
    return Structure(
        group,
        dtypes,
        {a.name: b.name for a, b in absorbed.items()},
        fixed,
        frozenset(n.name for n in computing),
        islands,
        profile.symmetric,
    )


def operands(node: fx.Node) -> tuple[fx.Node, ...]:
    """Tensor operands of a node that carry data (attributes and sizes left out)."""
    return tuple(
        arg
        for arg in flat_arguments(node)
        if isinstance(arg, fx.Node) and "shape" in arg.meta and arg.op != "get_attr"
    )


def flat_arguments(node: fx.Node) -> list[Any]:
    """Positional arguments of a node, those of a tuple (the operands of a concat) one by one."""
    return [a for arg in node.args for a in (arg if isinstance(arg, tuple | list) else (arg,))]


def _is_value(node: fx.Node) -> bool:
    floating = "dtype" in node.meta and node.meta["dtype"].is_floating_point
    return node.op != "output" and floating and node.op != "get_attr"


def _absorbed(
    nodes: list[fx.Node], names: Mapping[fx.Node, str], profile: Profile, integer: set[fx.Node]
) -> dict[fx.Node, fx.Node]:
    found: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        producer = node.args[0] if node.args else None
        if names[node] not in profile.absorbed or not isinstance(producer, fx.Node):
            continue
        fits = names.get(producer) in profile.absorbed[names[node]] and producer in integer
        fits = fits and (node in integer or names[node] == "requantize")
        if fits and len(producer.users) == 1 and holds_zero(node):
            found[producer] = node
    # A requantize may follow an activation that is computed on a layer's sums already.
    return {producer: found.get(node, node) for producer, node in found.items()}


def holds_zero(node: fx.Node) -> bool:
    """Whether zero passes through a relu or clamp node unchanged; other nodes cut nothing."""
    low, high = bounds(node)
    return low <= 0.0 <= high


def bounds(node: fx.Node) -> tuple[float, float]:
    """Interval that a relu or clamp node cuts to; other nodes cut nothing."""
    if node.target is torch.relu:
        return 0.0, float("inf")
    if node.target is not torch.clamp:
        return float("-inf"), float("inf")
    low, high = node.kwargs["min"], node.kwargs["max"]
    return (
        float("-inf") if low is None else float(low),  # type: ignore[arg-type]
        float("inf") if high is None else float(high),  # type: ignore[arg-type]
    )


def integer_bounds(node: fx.Node, grid: Grid) -> tuple[int, int]:
    """Integers that a relu or clamp node cuts to on a grid that ends elsewhere.

    Halves are rounded away from zero, as runtimes round the bounds of fused activations.

    Args:
        node: a relu or clamp; for any other node both ends of the grid are returned.
        grid: of its result.
    """
    steps = [np.float32(bound) / np.float32(grid.scale.item()) for bound in bounds(node)]
    whole = [math.copysign(np.floor(np.float64(abs(n)) + 0.5), n) for n in steps]
    shifted = [n + int(grid.zero_point) for n in whole]
    low, high = (int(min(max(n, grid.qmin), grid.qmax)) for n in shifted)
    return low, high
