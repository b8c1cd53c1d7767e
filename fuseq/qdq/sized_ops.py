"""ONNX form of the ops whose attributes may be sizes computed at run time: slice, pad, resize.

Sizes are int64 vectors of one element; `size` gives the tensor name of a number or of a node that
computes one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from torch import fx

from fuseq.program import Program
from fuseq.qdq.graph import Graph

Size: TypeAlias = Callable[[Any], str]
Rule: TypeAlias = Callable[[Graph, Program, fx.Node, str, Size], str]

_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def vector(graph: Graph, name: str, values: list[Any], size: Size) -> str:
    """Several sizes as one int64 vector: a constant if all are numbers."""
    if not any(isinstance(value, fx.Node) for value in values):
        return graph.integers(*values)
    return graph.node("Concat", [size(value) for value in values], name, axis=0)


def _slice(graph: Graph, program: Program, node: fx.Node, source: str, size: Size) -> str:
    edges = [size(node.kwargs[name]) for name in ("start", "end", "dim", "step")]
    return graph.node("Slice", [source, *edges], node.name)


def _pad(graph: Graph, program: Program, node: fx.Node, source: str, size: Size) -> str:
    amounts: Any = node.kwargs["pad"]
    rank = len(program.shape(node))
    begin, end = [0] * rank, [0] * rank
    for i in range(len(amounts) // 2):
        begin[rank - 1 - i], end[rank - 1 - i] = amounts[2 * i], amounts[2 * i + 1]
    inputs = [source, vector(graph, f"{node.name}.amounts", [*begin, *end], size)]
    value: Any = node.kwargs["value"]
    if node.kwargs["mode"] == "constant":
        inputs.append(graph.constant(np.float32(value)))
    return graph.node("Pad", inputs, node.name, mode=_PAD_MODES[str(node.kwargs["mode"])])


def _interpolate(graph: Graph, program: Program, node: fx.Node, source: str, size: Size) -> str:
    k: dict[str, Any] = dict(node.kwargs)
    if k["scale_factor"] is not None:
        scales = graph.constant(np.array([1, 1, *k["scale_factor"]], dtype=np.float32))
        wanted = ["", scales]
    else:
        kept = graph.node("Shape", [source], f"{node.name}.kept", start=0, end=2)
        parts = [kept, *(size(value) for value in k["size"])]
        wanted = ["", "", graph.node("Concat", parts, f"{node.name}.size", axis=0)]
    return resize(graph, node, source, wanted)


def resize(graph: Graph, node: fx.Node, source: str, wanted: Sequence[str]) -> str:
    """Resize to what the inputs behind the first one say: region, scales, sizes."""
    nearest = node.kwargs["mode"] == "nearest"
    half_pixel = "align_corners" if node.kwargs["align_corners"] else "half_pixel"
    return graph.node(
        "Resize",
        [source, *wanted],
        node.name,
        mode="nearest" if nearest else "linear",
        coordinate_transformation_mode="asymmetric" if nearest else half_pixel,
        nearest_mode="floor" if nearest else None,
    )


def _reshape(graph: Graph, program: Program, node: fx.Node, source: str, size: Size) -> str:
    shape: Any = node.kwargs["shape"]
    return graph.node(
        "Reshape", [source, vector(graph, f"{node.name}.shape", list(shape), size)], node.name
    )


SIZED_OPS: dict[str, Rule] = {
    "slice": _slice,
    "pad": _pad,
    "pad_value": _pad,
    "interpolate": _interpolate,
    "interpolate_nearest": _interpolate,
    "reshape": _reshape,
}
