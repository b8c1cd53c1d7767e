"""From observed ranges to one table of grids and frozen integers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn

from fuseq import ops
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.quant.grid import (
    LIMITS,
    Grid,
    affine_grid,
    bias_grid,
    centered_grid,
    quantize_bias,
    quantize_weight,
    symmetric_grid,
)
from fuseq.quant.observer import Observer
from fuseq.quant.profile import Profile
from fuseq.quant.structure import Structure, bounds, flat_arguments, holds_zero
from fuseq.quant.table import QuantizationTable

Layer: TypeAlias = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
"""Layers that have a weight to quantize."""


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

    Raises:
        FuseqError: FQ401 for a scale that is not finite.
    """
    ranges = {
        group: observers[group].range(structure.dtypes[group])
        for group in structure.group.values()
        if group not in structure.fixed
    }
    grids = activation_grids(program, structure, ranges)
    weights = {
        path: weight_grid(layer, profile, grids[source].scale)
        for path, layer, source in layers(program, structure)
    }
    table = freeze(program, profile, structure, grids, weights)
    require_scales(table)
    return table


def require_scales(table: QuantizationTable) -> None:
    """Refuse a table with a scale that float32 does not hold.

    Raises:
        FuseqError: FQ401 naming it.
    """
    for name, grid in table.grids.items():
        if not bool(grid.scale.isfinite().all()):
            raise FuseqError(
                "FQ401",
                f"the scale of `{name}` is not finite",
                why="weights, biases or values before it are too large for float32",
                fix="look for weights that diverged, and scale the inputs down",
            )


def activation_grids(
    program: Program,
    structure: Structure,
    ranges: Mapping[str, tuple[float, float]],
) -> dict[str, Grid]:
    """Grid of every quantized activation.

    Args:
        program: float program the structure belongs to.
        structure: which values share a grid, and its dtype.
        ranges: smallest and largest real of each group whose grid the target leaves free.

    Returns:
        Grids by node name; the members of a group have the same object.
    """
    wished = {
        group: _fixed_grid(*structure.fixed[group], structure.dtypes[group])
        if group in structure.fixed
        else _free_grid(
            *ranges[group],
            structure.dtypes[group],
            structure,
            [node for node in values if node.name in structure.group],
        )
        for group, values in _members(program, structure).items()
    }
    chosen = resolved(program, structure, wished)
    return {name: chosen[group] for name, group in structure.group.items()}


def resolved(
    program: Program, structure: Structure, wished: Mapping[str, Grid]
) -> Mapping[str, Grid]:
    """Widen the grids of sums, means and products that are finer than integer kernels can fill.

    Steps below 1/128 of those of a term of a sum, or of the smallest product of two integers, would
    resolve nothing but rounding noise. Kernels multiply by the ratio of the steps: one of 256 or
    more they refuse, or answer with noise, and from `2**22` on, `2**16` of 16 bits, the integers of
    any op overflow.
    (A result that is always zero, as a dead channel or `x - x`, has the smallest of scales.)

    Args:
        program: float program the structure belongs to.
        structure: which values share a grid.
        wished: grid of each group, those of operands before those of results.
    """
    chosen: dict[str, Grid] = {}
    for group, values in _members(program, structure).items():
        grid = chosen[group] = wished[group]
        if group not in structure.fixed:
            floors = [s for n in values for s in _smallest_scales(program, structure, n, chosen)]
            if floors:
                scale = torch.stack([grid.scale, *floors]).amax()
                chosen[group] = Grid(scale, grid.zero_point, grid.dtype)
    return chosen


def _members(program: Program, structure: Structure) -> dict[str, list[fx.Node]]:
    """Nodes of each group, and those whose activation is in it."""
    nodes = {node.name: node for node in program.graph.nodes}
    members: dict[str, list[fx.Node]] = {}
    for name, group in structure.group.items():
        members.setdefault(group, []).append(nodes[name])
    for producer, activation in structure.absorbed.items():
        members[structure.group[activation]].append(nodes[producer])
    return members


_FINEST = {
    **dict.fromkeys(("add", "sub", "mean", "mul", "matmul"), 2**-7),
    **dict.fromkeys(("conv2d", "conv_transpose2d", "linear"), 2**-7),
    "hardswish": 2**-6,
    **dict.fromkeys(("relu", "clamp", "leaky_relu", "prelu"), 2**-14),
}
"""Smallest step of a result, as a share of the steps of its operand or of their product."""


def _smallest_scales(
    program: Program, structure: Structure, node: fx.Node, chosen: Mapping[str, Grid]
) -> list[Tensor]:
    name = ops.name_of(program, node)
    if name not in _FINEST:
        return []
    grids = []
    for arg in flat_arguments(node):
        if isinstance(arg, fx.Node) and arg.name in structure.group:
            grids.append(chosen.get(structure.group[arg.name]))
        elif isinstance(arg, float) or (isinstance(arg, fx.Node) and arg.op == "get_attr"):
            grids.append(_constant_grid(program, node, arg, structure))
    scales = [grid.scale for grid in grids if grid is not None]
    layer = program.get(node) if node.op == "call_module" else None
    if isinstance(layer, Layer) and grids and grids[0] is not None:
        return _smallest_scales_of_layer(layer, grids[0], _FINEST[name])
    if name in ("mul", "matmul"):
        return [scales[0] * scales[1] * _FINEST[name]] if len(scales) == 2 else []
    return [scale * _FINEST[name] for scale in scales]


def _smallest_scales_of_layer(layer: Layer, grid: Grid, finest: float) -> list[Tensor]:
    """Of a product of integers, and such that no sum has `2**31` steps, where kernels wrap around.

    A sum is bounded by the weights of one output channel, the largest input and the bias.
    """
    weight = layer.weight.detach().abs()
    axis = output_axis(layer)
    total = weight.sum([d for d in range(weight.dim()) if d != axis]).amax().cpu()
    bound = total * grid.scale * (grid.qmax - grid.qmin)
    if layer.bias is not None:
        bound = bound + layer.bias.detach().abs().amax().cpu()
    return [grid.scale * weight.amax().cpu() / 127 * finest, bound * 2**-30]


def output_axis(layer: Layer) -> int:
    """Dimension of a layer's weight that runs over its output channels."""
    return 1 if isinstance(layer, nn.ConvTranspose2d) else 0


def weight_grid(module: Layer, profile: Profile, input_scale: Tensor) -> Grid:
    """Grid of a layer's weight, along its output channels.

    Args:
        module: a weighted layer.
        profile: says whether channels have scales of their own; if not, all have the largest.
        input_scale: scale of the layer's input, 0-d.
    """
    axis = output_axis(module)
    grid = symmetric_grid(module.weight, axis, module.bias, input_scale)
    if has_one_scale(module, profile):
        return Grid(grid.scale.amax(), grid.zero_point[0], "int8")
    if profile.per_channel:
        return grid
    return Grid(grid.scale.amax().expand_as(grid.scale).clone(), grid.zero_point, "int8", axis)


def has_one_scale(module: Layer, profile: Profile) -> bool:
    """Whether a weight has one 0-d scale, since its groups may have no scales for channels."""
    grouped = isinstance(module, nn.ConvTranspose2d) and module.groups > 1
    return grouped and not profile.per_channel_groups


def layers(program: Program, structure: Structure) -> Iterator[tuple[str, Layer, str]]:
    """Path, module and name of the input value of every layer that computes in integers."""
    for node in program.graph.nodes:
        if node.name in structure.integer and node.op == "call_module":
            module = program.get(node)
            if isinstance(module, Layer):
                yield str(node.target), module, node.all_input_nodes[0].name


def freeze(
    program: Program,
    profile: Profile,
    structure: Structure,
    activations: Mapping[str, Grid],
    weights: Mapping[str, Grid],
) -> QuantizationTable:
    """Round weights, biases and constants to their grids.

    Args:
        program: float program.
        profile: the target's rules.
        structure: of the program.
        activations: grid of each quantized value, by node name.
        weights: grid of each layer's weight, by its path; layers without one are left out.
    """
    grids, integers = dict(activations), {}
    for path, module, source in layers(program, structure):
        if path not in weights:
            continue
        grids[f"{path}.weight"] = weights[path]
        integers[f"{path}.weight"] = quantize_weight(module.weight.detach(), weights[path])
        if module.bias is not None:
            grid = grids[f"{path}.bias"] = bias_grid(grids[source], weights[path], module.bias)
            integers[f"{path}.bias"] = quantize_bias(module.bias.detach(), grid)
    for node in program.graph.nodes:
        if node.name in structure.integer:
            _freeze_operands(program, node, structure, grids, integers)
    return QuantizationTable(profile, grids, integers, structure.absorbed, structure.integer)


def _fixed_grid(scale: float, zero_point: int, dtype: str) -> Grid:
    return Grid(
        torch.tensor(scale, dtype=torch.float32), torch.tensor(zero_point, dtype=torch.int32), dtype
    )


def _free_grid(
    low: float, high: float, dtype: str, structure: Structure, values: Sequence[fx.Node] = ()
) -> Grid:
    """Grid over a range, of the form that the target has for a dtype.

    An affine one ends inside what the clamps among its values allow.
    """
    if dtype in structure.symmetric:
        return centered_grid(low, high, dtype)
    return _inside(affine_grid(low, high, dtype), values)


def _inside(grid: Grid, values: Sequence[fx.Node]) -> Grid:
    """Shrink a grid until its ends lie inside what the group's clamps allow.

    A runtime may drop a clamp whose interval holds the whole grid, so the float32 product
    `scale * (qmax - zero_point)` must not exceed the clamp by rounding. Of the neighbouring zero
    points the one that needs the least shrinking is taken. A clamp that cuts zero off cannot be
    dropped, since every grid holds zero; it does not count.
    """
    clamps = [bounds(n) for n in values if n.target in (torch.relu, torch.clamp) and holds_zero(n)]
    if not clamps:
        return grid
    low, high = max(c[0] for c in clamps), min(c[1] for c in clamps)
    scale, zero_point = np.float32(grid.scale.item()), int(grid.zero_point)
    shifted = [zero_point + shift for shift in (0, -1, 1)]
    found = [(_shrunk(scale, z - grid.qmin, grid.qmax - z, low, high), z) for z in shifted]
    scale, zero_point = max(found, key=lambda pair: pair[0])
    if scale == 0:
        return grid
    return Grid(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), grid.dtype)


def _shrunk(scale: np.float32, below: int, above: int, low: float, high: float) -> np.float32:
    """The largest scale up to the one given whose steps below and above zero stay in an interval.

    Zero if there is none.
    """
    for limit, steps in ((-low, below), (high, above)):
        if steps < 0 or (steps > 0 and limit == 0):
            return np.float32(0)
        if steps > 0 and limit < math.inf:
            scale = min(scale, _largest_scale(limit, steps))
    return scale


def _largest_scale(limit: float, steps: int) -> np.float32:
    """Largest float32 whose float32 product with an integer does not exceed a limit."""
    scale = np.float32(limit) / np.float32(steps)
    while float(scale * np.float32(steps)) > limit:
        scale = np.nextafter(scale, np.float32(0))
    return scale


def _freeze_operands(
    program: Program,
    node: fx.Node,
    structure: Structure,
    grids: dict[str, Grid],
    integers: dict[str, Tensor],
) -> None:
    """Constants and numbers that a quantized add, sub, mul or div takes, as fine as its values."""
    if ops.name_of(program, node) not in ("add", "sub", "mul", "div", "concat"):
        return
    for arg in flat_arguments(node):
        if isinstance(arg, float) or (isinstance(arg, fx.Node) and arg.op == "get_attr"):
            name = arg.name if isinstance(arg, fx.Node) else f"{node.name}.operand"
            grids[name] = _constant_grid(program, node, arg, structure)
            integers[name] = grids[name].quantize(_constant(program, arg))


def _constant(program: Program, arg: fx.Node | float) -> Tensor:
    return torch.tensor(arg) if isinstance(arg, float) else program.constant(arg).detach().float()


def _constant_grid(
    program: Program, node: fx.Node, arg: fx.Node | float, structure: Structure
) -> Grid:
    low, high = _constant(program, arg).aminmax()
    return _free_grid(float(low), float(high), _widest(node, structure), structure)


def _widest(node: fx.Node, structure: Structure) -> str:
    """Dtype of the values a node takes and gives; the one with most integers where they differ."""
    own = structure.absorbed.get(node.name, node.name)
    names = [own, *(operand.name for operand in node.all_input_nodes)]
    groups = [structure.group[name] for name in names if name in structure.group]
    return max((structure.dtypes[group] for group in groups), key=lambda dtype: LIMITS[dtype][1])
