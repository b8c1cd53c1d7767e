"""Small QDQ files, written by hand: one convolution and what a test puts behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

SHAPE = (1, 3, 16, 16)


def write(
    file: Path,
    after: Sequence[tuple[str, ...]] = (),
    operands: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """A file with uint8 inputs `x` and outputs `y`.

    Args:
        file: to write.
        after: float ops between the convolution and the last quantizer. Those of one tuple follow
            each other without quantizers; between tuples there is one.
        operands: further operands of each such op, float constants by name.
    """
    random = np.random.default_rng(0)
    weight = random.integers(-127, 128, (3, 3, 3, 3)).astype(np.int8)
    constants = {
        "w": weight,
        "w.scale": np.full(3, 0.004, np.float32),
        "w.zero_point": np.zeros(3, np.int8),
        "x.scale": np.float32(1 / 255),
        "x.zero_point": np.uint8(0),
        "scale": np.float32(1 / 128),
        "zero_point": np.uint8(128),
    }
    grid = ["scale", "zero_point"]
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "x.scale", "x.zero_point"], ["x.real"], "x.in"),
        helper.make_node(
            "DequantizeLinear", ["w", "w.scale", "w.zero_point"], ["w.real"], "w.in", axis=0
        ),
        helper.make_node("Conv", ["x.real", "w.real"], ["conv"], "conv", pads=[1, 1, 1, 1]),
    ]
    value = "conv"
    for k, ops in enumerate(after):
        nodes.append(helper.make_node("QuantizeLinear", [value, *grid], [f"{value}.q"], f"{k}.out"))
        nodes.append(
            helper.make_node("DequantizeLinear", [f"{value}.q", *grid], [f"{k}"], f"{k}.in")
        )
        value = f"{k}"
        for op in ops:
            name = f"{op.lower()}_{len(nodes)}"
            nodes.append(helper.make_node(op, [value, *(operands or {})], [name], name))
            value = name
    nodes.append(helper.make_node("QuantizeLinear", [value, *grid], ["y"], "y.out"))
    onnx.save(_model(nodes, {**constants, **(operands or {})}), str(file))
    return file


def _model(nodes: list[NodeProto], constants: dict[str, object]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "qdq",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, SHAPE)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
