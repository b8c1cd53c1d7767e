"""From observed ranges to one table of grids and frozen integers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from fuseq import ops
from fuseq.program import Program
from fuseq.quant.grid import (
    Grid,
    affine_grid,
    bias_grid,
    quantize_weight,
    symmetric_grid,
)
from fuseq.quant.observer import Observer
from fuseq.quant.profile import Profile
from fuseq.quant.structure import Structure, bounds
from fuseq.quant.table import QuantizationTable


def solve(
    program: Program, profile: Profile, structure: Structure, observers: Mapping[str, Observer]
) -> QuantizationTable:
    """Choose every grid and freeze every weight and bias.

    Args:
        program: float program the structure belongs to.
        profile: the target's rules.
        structure: which values share a grid.
        observers: one per group, after calibration.

    Returns:
        The table.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    members: dict[str, list[fx.Node]] = {}
    for name, group in structure.group.items():
        members.setdefault(group, []).append(nodes[name])
    chosen = {
        group: _activation_grid(profile, structure.fixed.get(group), observers[group], values)
        for group, values in members.items()
    }
    grids = {name: chosen[group] for name, group in structure.group.items()}
    integers: dict[str, Tensor] = {}
    for node in program.graph.nodes:
        if node.name in structure.integer:
            _freeze_parameters(program, node, profile, grids, integers)
            _freeze_operands(program, node, profile, grids, integers)
    return QuantizationTable(profile, grids, integers, structure.absorbed, structure.integer)


def _activation_grid(
    profile: Profile, fixed: tuple[float, int] | None, observer: Observer, values: list[fx.Node]
) -> Grid:
    if fixed is not None:
        scale, zero_point = fixed
        return Grid(
            torch.tensor(scale, dtype=torch.float32),
            torch.tensor(zero_point, dtype=torch.int32),
            profile.activation,
        )
    low, high = observer.range(profile.activation)
    return _inside(affine_grid(low, high, profile.activation), values)


def _inside(grid: Grid, values: list[fx.Node]) -> Grid:
    """Shrink a grid until its ends lie inside what the group's clamps allow.

    A runtime may drop a clamp whose interval holds the whole grid, so the float32 product
    `scale * (qmax - zero_point)` must not exceed the clamp by rounding.
    """
    clamps = [bounds(v) for v in values if v.target in (torch.relu, torch.clamp)]
    low, high = (
        max((c[0] for c in clamps), default=-math.inf),
        min((c[1] for c in clamps), default=math.inf),
    )
    scale, zero_point = grid.scale, grid.zero_point
    while (
        float(scale * (grid.qmax - zero_point)) > high
        or float(scale * (grid.qmin - zero_point)) < low
    ):
        scale = torch.nextafter(scale, torch.zeros_like(scale))
        if float(scale) <= 0:
            return grid
    return Grid(scale, zero_point, grid.dtype)


def _freeze_parameters(
    program: Program,
    node: fx.Node,
    profile: Profile,
    grids: dict[str, Grid],
    integers: dict[str, Tensor],
) -> None:
    if node.op != "call_module":
        return
    module = program.get(node)
    if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        return
    path = str(node.target)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
    weight_grid = symmetric_grid(module.weight, axis, module.bias, grids[source.name].scale)
    if not profile.per_channel:
        scale = weight_grid.scale.amax().expand_as(weight_grid.scale).clone()
        weight_grid = Grid(scale, weight_grid.zero_point, "int8", axis)
    grids[f"{path}.weight"] = weight_grid
    integers[f"{path}.weight"] = quantize_weight(module.weight.detach(), weight_grid)
    if module.bias is not None:
        grid = bias_grid(grids[source.name], weight_grid)
        exact = module.bias.detach().double() / grid.scale.double()
        grids[f"{path}.bias"] = grid
        integers[f"{path}.bias"] = torch.round(exact).to(torch.int32)


def _freeze_operands(
    program: Program,
    node: fx.Node,
    profile: Profile,
    grids: dict[str, Grid],
    integers: dict[str, Tensor],
) -> None:
    """Constants and numbers that a quantized add, sub, mul or div takes."""
    if ops.name_of(program, node) not in ("add", "sub", "mul", "div", "concat"):
        return
    flat: list[object] = []
    for arg in node.args:
        flat.extend(arg if isinstance(arg, tuple | list) else (arg,))
    for arg in flat:
        if isinstance(arg, fx.Node) and arg.op == "get_attr":
            name, value = arg.name, program.constant(arg).detach().float()
        elif isinstance(arg, float):
            name, value = f"{node.name}.operand", torch.tensor(arg)
        else:
            continue
        low, high = (float(v) for v in value.aminmax())
        grids[name] = affine_grid(low, high, profile.activation)
        integers[name] = grids[name].quantize(value)
