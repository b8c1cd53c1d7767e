"""What the report measured, for viewers of model files: Model Explorer and Netron.

Model Explorer takes node data as JSON, one file a metric (`--node_data_paths`):

    {graph: {"name": ..., "results": {node or output tensor: {"value": ...}}, "thresholds": [...]}}

Netron shows the metadata of nodes, so it gets a copy of the ONNX file with the values in there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from fuseq.bundle import Bundle
from fuseq.errors import FuseqError
from fuseq.report.drawing import LEVELS
from fuseq.report.measured_values import MeasuredValue

METRICS: Mapping[str, Callable[[MeasuredValue], float]] = {
    "sqnr_db": lambda value: value.statistics.sqnr_db,
    "cut_off": lambda value: value.statistics.clipped,
    "error_steps": lambda value: value.statistics.rmse_steps,
}
"""SQNR in dB, share of reals outside the grid, and root mean squared error in steps."""

_COLOURS = ("#e2604e", "#ec9245", "#dcb62f", "#93bf5c", "#4fb3a0", "#4f9fd6")
_TFLITE_GRAPH = "main"
_METADATA_IR = 10  # the first version of ONNX files whose nodes have metadata


def model_explorer(bundle: Bundle, values: Sequence[MeasuredValue]) -> dict[str, bytes]:
    """Node data, as the content of one file for each metric, by the metric's name.

    Raises:
        FuseqError: FQ012 for a float bundle.
    """
    file = _int8_file(bundle, values, "model-explorer")
    keys, graph = {v.statistics.node: v.statistics.node for v in values}, _TFLITE_GRAPH
    if file.suffix == ".onnx":
        model = onnx.load(file)
        keys, graph = _keys(model, values), model.graph.name
    found = {}
    for name, measure in METRICS.items():
        results = {
            keys[value.statistics.node]: {"value": round(measure(value), 6)}
            for value in values
            if value.statistics.node in keys and math.isfinite(measure(value))
        }
        data: dict[str, Any] = {"name": name, "results": results}
        if name == "sqnr_db":
            ends = (*LEVELS, 1000.0)
            pairs = zip(ends, _COLOURS, strict=True)
            data["thresholds"] = [{"value": end, "bgColor": colour} for end, colour in pairs]
        found[name] = json.dumps({graph: data}, indent=1).encode()
    return found


def netron(bundle: Bundle, values: Sequence[MeasuredValue]) -> bytes:
    """A copy of the int8 ONNX file whose nodes carry what was measured, as `fuseq.<metric>`.

    Raises:
        FuseqError: FQ012 for a bundle without one.
    """
    file = _int8_file(bundle, values, "netron")
    if file.suffix != ".onnx":
        raise FuseqError(
            "FQ012",
            f"netron shows no metadata of nodes in a {file.suffix} file",
            fix="--overlay model-explorer",
        )
    model = onnx.load(file)
    model.ir_version = max(model.ir_version, _METADATA_IR)
    by_name, keys = {v.statistics.node: v for v in values}, _keys(model, values)
    measured = {key: by_name[name] for name, key in keys.items()}
    for node in model.graph.node:
        for name, measure in METRICS.items() if node.name in measured else ():
            entry = node.metadata_props.add()
            entry.key, entry.value = f"fuseq.{name}", f"{measure(measured[node.name]):.6g}"
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _int8_file(bundle: Bundle, values: Sequence[MeasuredValue], overlay: str) -> Path:
    file = bundle.file("int8")
    if file is None or not values:
        raise FuseqError(
            "FQ012",
            f"there is nothing to show in {overlay}: '{bundle.path}' holds no quantized program",
            fix="leave out --overlay, or lower to int8",
        )
    return file


def _keys(model: onnx.ModelProto, values: Sequence[MeasuredValue]) -> dict[str, str]:
    """The ONNX node that stands for each value: what computes it, or an input's quantizer."""
    known = {node.name for node in model.graph.node}
    names = [value.statistics.node for value in values]
    quantizers = {name: f"{name}.quantized" for name in names if f"{name}.quantized" in known}
    return quantizers | {name: name for name in names if name in known}
