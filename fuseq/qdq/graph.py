"""`Graph`: collects ONNX nodes and initializers under unique names, and closes into a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from fuseq.quant.grid import Grid

IR_VERSION = 10

DTYPES: Mapping[str, int] = {
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "uint16": TensorProto.UINT16,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float32": TensorProto.FLOAT,
    "bool": TensorProto.BOOL,
}


def serialized(model: onnx.ModelProto) -> bytes:
    """Bytes of a model, the same every time."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


class Graph:
    """An ONNX graph under construction.

    Attributes:
        opset: version of the default operator set.
    """

    def __init__(self, opset: int) -> None:
        """Start an empty graph.

        Args:
            opset: version of the default operator set.
        """
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._taken: set[str] = set()

    def unique(self, name: str) -> str:
        """A tensor or node name nobody has taken."""
        candidate, count = name, 1
        while candidate in self._taken:
            candidate, count = f"{name}_{count}", count + 1
        self._taken.add(candidate)
        return candidate

    def initializer(self, name: str, value: npt.NDArray[Any] | np.generic) -> str:
        """A named constant; returns its tensor name."""
        name = self.unique(name)
        self.initializers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def constant(self, value: npt.NDArray[Any] | np.generic) -> str:
        """An unnamed constant, shared with every equal one."""
        key = (str(value.dtype), value.shape, value.tobytes())
        if key not in self._constants:
            self._constants[key] = self.initializer("constant", value)
        return self._constants[key]

    def integers(self, *values: Any) -> str:
        """A constant int64 vector."""
        return self.constant(np.array(values, dtype=np.int64))

    def grid(self, grid: Grid) -> tuple[str, str]:
        """Constants with the scale and the zero point of a grid."""
        zero_point = grid.zero_point.numpy().astype(grid.dtype)
        return self.constant(grid.scale.numpy()), self.constant(zero_point)

    def dequantize(self, name: str, integers: str, grid: Grid) -> str:
        """Reals of integers on a grid; returns the tensor `<name>.dequantized`."""
        inputs = [integers, *self.grid(grid)]
        return self.node("DequantizeLinear", inputs, f"{name}.dequantized", axis=grid.axis)

    def integers_of(self, dequantized: str) -> str:
        """The integers whose reals a tensor holds."""
        (maker,) = (node for node in self.nodes if dequantized in node.output)
        assert maker.op_type == "DequantizeLinear"
        name: str = maker.input[0]
        return name

    def node(
        self, op: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any
    ) -> str:
        """Add a node with one output; returns the output's unique tensor name."""
        output = self.unique(output)
        attributes = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(
            helper.make_node(op, list(inputs), [output], name=output, domain=domain, **attributes)
        )
        return output

    def model(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        metadata: Mapping[str, str],
    ) -> onnx.ModelProto:
        """Close into a checked model. Nothing in it depends on time, path or hash order."""
        used = {tensor for node in self.nodes for tensor in node.input}
        used |= {value.name for value in outputs}
        graph = helper.make_graph(
            self.nodes,
            name,
            list(inputs),
            list(outputs),
            [tensor for key, tensor in self.initializers.items() if key in used],
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=IR_VERSION,
            producer_name="fuseq",
        )
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model, full_check=True)
        return model
