"""A small QDQ graph, run on ONNX Runtime, and random grids and integers to feed it.

Half of the grids have power-of-two scales: on those, ties of the rounding are common.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from fuseq.quant.grid import LIMITS, Grid

ELEMENT = {
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "uint16": TensorProto.UINT16,
    "float32": TensorProto.FLOAT,
}


class Qdq:
    """A QDQ graph under construction, with the values of its inputs."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.inputs: list[Any] = []
        self.feeds: dict[str, np.ndarray[Any, Any]] = {}

    def constant(self, value: Any, dtype: str) -> str:
        name = f"c{len(self.initializers)}"
        array = np.asarray(value, dtype=dtype)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def input(self, value: Tensor, dtype: str) -> str:
        name = f"x{len(self.inputs)}"
        info = helper.make_tensor_value_info(name, ELEMENT[dtype], list(value.shape))
        self.inputs.append(info)
        self.feeds[name] = value.numpy().astype(dtype)
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"y{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def grid(self, grid: Grid) -> tuple[str, str]:
        zero_point = self.constant(grid.zero_point, grid.dtype)
        return self.constant(grid.scale, "float32"), zero_point

    def quantize(self, name: str, grid: Grid) -> str:
        return self.node("QuantizeLinear", name, *self.grid(grid))

    def dequantize(self, name: str, grid: Grid) -> str:
        axis = {} if grid.axis is None else {"axis": grid.axis}
        return self.node("DequantizeLinear", name, *self.grid(grid), **axis)

    def activation(self, q: Tensor, grid: Grid) -> str:
        return self.dequantize(self.input(q, grid.dtype), grid)

    def parameter(self, q: Tensor, grid: Grid) -> str:
        return self.dequantize(self.constant(q, grid.dtype), grid)

    def run(
        self, output: str, dtype: str, path: Path, precision: str | None = None
    ) -> tuple[Tensor, list[str]]:
        """Output of the graph, and the op types ONNX Runtime ran, layout changes left out."""
        result = helper.make_tensor_value_info(output, ELEMENT[dtype], None)
        graph = helper.make_graph(self.nodes, "g", self.inputs, [result], self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(path / "optimized.onnx")
        options.add_session_config_entry("session.x64quantprecision", precision or exact_products())
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        (value,) = session.run(None, self.feeds)
        optimized = onnx.load(options.optimized_model_filepath).graph.node
        ran = [node.op_type for node in optimized if node.op_type != "Transpose"]
        value = torch.from_numpy(value)
        return value if dtype == "float32" else value.to(torch.int32), ran


@functools.cache
def exact_products() -> str:
    """Value of `session.x64quantprecision`: "1" where this CPU's u8 x s8 kernels saturate.

    Without VNNI, pairs of products are added in 16 bits: 2 * 255 * 127 does not fit.
    """
    one = Grid(torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), "uint8")
    coarse = Grid(torch.tensor(2.0**11), torch.tensor(0, dtype=torch.int32), "uint8")
    weight_grid = Grid(one.scale, one.zero_point, "int8")
    x, weight = torch.full((1, 8, 4, 4), 255), torch.full((8, 8, 1, 1), 127)
    graph = Qdq()
    y = graph.node("Conv", graph.activation(x, one), graph.parameter(weight, weight_grid))
    with tempfile.TemporaryDirectory() as directory:
        got, _ = graph.run(graph.quantize(y, coarse), "uint8", Path(directory), precision="0")
    return "0" if int(got[0, 0, 0, 0]) == round(8 * 255 * 127 / 2**11) else "1"


def any_grid(random: np.random.Generator, dtype: str, scale: float | None = None) -> Grid:
    low, high = LIMITS[dtype]
    if scale is None:
        scale = (
            2.0 ** random.integers(-8, -1) if random.random() < 0.5 else random.uniform(0.004, 0.4)
        )
    elif random.random() < 0.5:
        scale = 2.0 ** round(np.log2(scale))
    anywhere = int(random.integers(low, high + 1))
    zero_point = int(random.choice([low, high, (low + high + 1) // 2, anywhere, anywhere | 1]))
    return Grid(
        torch.tensor(scale, dtype=torch.float32), torch.tensor(zero_point, dtype=torch.int32), dtype
    )


def integers(random: np.random.Generator, shape: tuple[int, ...], grid: Grid) -> Tensor:
    return torch.from_numpy(random.integers(grid.qmin, grid.qmax + 1, shape, dtype=np.int32))


def every_integer(grid: Grid) -> Tensor:
    return torch.arange(grid.qmin, grid.qmax + 1, dtype=torch.int32)


def uint8_grid(scale: float, zero_point: int) -> Grid:
    return Grid(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), "uint8")
