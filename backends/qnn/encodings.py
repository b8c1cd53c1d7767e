"""Encodings: the grids of a program by the tensor names of its float ONNX file, as JSON.

Qualcomm's converters take a float file and one of these. With `real = scale * (q - z)` on a grid
of b bits, the three versions say

    2.0.0    y_scale, y_zero_point = z, and the dtype, as ONNX QuantizeLinear
    1.0.0    scale, offset = -z on the unsigned grid: a signed grid is moved up by 2^(b-1) first
    0.6.1    the same offset, and min = scale * offset, max = scale * (offset + 2^b - 1)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import onnx

from fuseq.program import Program
from fuseq.quant.grid import LIMITS, Grid, slope_grid
from fuseq.quant.profile import Profile

Grids: TypeAlias = Mapping[str, Grid]


def tensor_grids(program: Program, model: onnx.ModelProto) -> tuple[Grids, Grids]:
    """Grids of a program by the names of the tensors that have them.

    Args:
        program: quantized.
        model: the float file written of it.

    Returns:
        Those of values and those of parameters, in the order of the file.
    """
    assert program.quantization is not None
    grids = dict(program.quantization.grids)
    for name, node in zip(program.input_names, program.inputs(), strict=True):
        if node.name in grids:
            grids[name] = grids[node.name]
    for node in program.graph.nodes:
        if node.op == "call_module" and type(program.get(node)).__name__ == "PReLU":
            layer: Any = program.get(node)
            grids[f"{node.target}.weight"] = slope_grid(layer.weight, "uint8")
    parameters = {t.name: grids[t.name] for t in model.graph.initializer if t.name in grids}
    values = {v.name: grids[v.name] for v in model.graph.input if v.name in grids}
    for item in model.graph.node:
        name = item.output[0]
        moves = item.op_type in ("Transpose", "Identity", "SpaceToDepth") and name not in grids
        grid = values.get(item.input[0]) if moves else grids.get(name)
        if grid is not None:
            values[name] = grid
    return values, parameters


def encodings_v2(values: Grids, parameters: Grids) -> dict[str, Any]:
    """Version 2.0.0: one list, in the terms of ONNX."""
    everything = {**values, **parameters}
    return {"version": "2.0.0", "encodings": [_v2(n, grid) for n, grid in everything.items()]}


def _v2(name: str, grid: Grid) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "output_dtype": grid.dtype}
    entry["y_scale"] = grid.scale.tolist()
    if bool(grid.zero_point.any()):
        entry["y_zero_point"] = grid.zero_point.tolist()
    if grid.axis is not None:
        entry["axis"] = grid.axis
    return entry


def encodings_v1(values: Grids, parameters: Grids) -> dict[str, Any]:
    """Version 1.0.0: lists of scales and offsets."""
    return {
        "version": "1.0.0",
        "activation_encodings": [_v1(name, grid) for name, grid in values.items()],
        "param_encodings": [_v1(name, grid) for name, grid in parameters.items()],
    }


def _v1(name: str, grid: Grid) -> dict[str, Any]:
    return {
        "name": name,
        "enc_type": "PER_TENSOR" if grid.axis is None else "PER_CHANNEL",
        "dtype": "INT",
        "bw": _bits(grid),
        "is_sym": _is_symmetric(grid),
        "scale": grid.scale.reshape(-1).tolist(),
        "offset": _offsets(grid),
    }


def encodings_v0(values: Grids, parameters: Grids, profile: Profile) -> dict[str, Any]:
    """Version 0.6.1: one entry for each channel."""
    return {
        "version": "0.6.1",
        "activation_encodings": {name: _v0(grid) for name, grid in values.items()},
        "param_encodings": {name: _v0(grid) for name, grid in parameters.items()},
        "quantizer_args": {
            "activation_bitwidth": 16 if profile.activation.endswith("16") else 8,
            "dtype": "int",
            "is_symmetric": True,
            "param_bitwidth": 8,
            "per_channel_quantization": profile.per_channel,
            "quant_scheme": "post_training_tf",
        },
    }


def _v0(grid: Grid) -> list[dict[str, Any]]:
    bits = _bits(grid)
    return [
        {
            "bitwidth": bits,
            "dtype": "int",
            "is_symmetric": str(_is_symmetric(grid)),
            "min": scale * offset,
            "max": scale * (offset + 2**bits - 1),
            "scale": scale,
            "offset": offset,
        }
        for scale, offset in zip(grid.scale.reshape(-1).tolist(), _offsets(grid), strict=True)
    ]


def _bits(grid: Grid) -> int:
    return int(grid.dtype.lstrip("uint"))


def _is_symmetric(grid: Grid) -> bool:
    return LIMITS[grid.dtype][0] < 0 and not bool(grid.zero_point.any())


def _offsets(grid: Grid) -> list[int]:
    return [LIMITS[grid.dtype][0] - z for z in grid.zero_point.reshape(-1).tolist()]
