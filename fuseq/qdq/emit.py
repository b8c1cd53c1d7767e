"""Translate a program to ONNX: plain float, or QDQ from the program's quantization table.

In QDQ form a quantized value `v` is three tensors: `v` (float, as its op makes it),
`v.quantized` (integers) and `v.dequantized`, which its readers take. The runtime recognises
DequantizeLinear -> op -> QuantizeLinear and runs its integer kernel. A value that a later
activation absorbs has no quantizer between, and a requantize edge is nothing but reading the
operand on its own grid: the op behind it quantizes to its own. (An operand that stays float is
quantized at that edge.)
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper
from torch import Tensor, fx, nn

from fuseq import ops
from fuseq.program import Program
from fuseq.qdq import foreign
from fuseq.qdq.float_ops import FLOAT_OPS, Rule, conv_attributes
from fuseq.qdq.graph import DTYPES, Graph
from fuseq.qdq.layout import FIRST, FORMAT, LAST, LAYOUT
from fuseq.qdq.sized_ops import SIZED_OPS
from fuseq.quant.grid import Grid
from fuseq.quant.structure import flat_arguments


def to_onnx(
    program: Program,
    *,
    name: str,
    opset: int,
    dynamic: bool,
    integer_io: bool,
    channels_last: bool = False,
    rules: Mapping[str, Rule] | None = None,
    inner: Callable[[Program, fx.Node], Grid | None] | None = None,
) -> onnx.ModelProto:
    """ONNX model of a program.

    Args:
        program: float or quantized.
        name: of the graph.
        opset: 18 or 21.
        dynamic: leave open the sizes the program was proved to take.
        integer_io: inputs and outputs are the integers of their grids, without quantizers.
        channels_last: images go in and come out `[N, H, W, C]`; a transpose stands at the edge.
        rules: how this runtime wants ops of a quantized program, where not as in float.
        inner: grid for the quantizer that a runtime wants to see between a layer and the activation
            it then computes on the layer's sums all the same (tensor `<layer>.ignored`), or None.

    Returns:
        A checked model with the same bytes every time.
    """
    emitter = _Emitter(program, Graph(opset), dynamic, integer_io, channels_last)
    emitter.rules, emitter.inner = rules or {}, inner
    return emitter.run(name)


class _Emitter:
    def __init__(
        self,
        program: Program,
        graph: Graph,
        dynamic: bool,
        integer_io: bool,
        channels_last: bool,
    ) -> None:
        self.program, self.graph = program, graph
        self.dynamic, self.integer_io, self.channels_last = dynamic, integer_io, channels_last
        self.rules: Mapping[str, Rule] = {}
        self.inner: Callable[[Program, fx.Node], Grid | None] | None = None
        self.grids: Mapping[str, Grid] = {}
        self.integers: Mapping[str, Tensor] = {}
        if program.quantization is not None:
            self.grids = program.quantization.grids
            self.integers = program.quantization.integers
        self.tensors: dict[fx.Node, str] = {}
        self.quantized: dict[fx.Node, str] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def run(self, name: str) -> onnx.ModelProto:
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self._input(node)
            elif node.op == "output":
                self._outputs()
            else:
                self._node(node)
        metadata = {FORMAT: "1"} | ({LAYOUT: "nhwc"} if self.channels_last else {})
        return self.graph.model(name, self.inputs, self.outputs, metadata)

    # --- interface ---

    def _input(self, node: fx.Node) -> None:
        index = len(self.inputs)
        name = self.graph.unique(self.program.input_names[index])
        grid = self.grids.get(node.name)
        dtype = str(node.meta["dtype"]).removeprefix("torch.")
        integer = grid is not None and self.integer_io
        shape = self._dims(index, self.program.shape(node))
        image = self.channels_last and len(shape) == 4
        if image:
            shape = [shape[axis] for axis in LAST]
        self.inputs.append(
            helper.make_tensor_value_info(
                name, DTYPES[grid.dtype if integer and grid else dtype], shape
            )
        )
        if image:
            name = self.graph.node("Transpose", [name], f"{name}.nchw", perm=list(FIRST))
        if integer and grid:
            self.quantized[node] = name
            self.tensors[node] = self._dequantize(node.name, name, grid)
        else:
            self.tensors[node] = self._quantize(node, name) if grid else name

    def _outputs(self) -> None:
        for name, result in zip(self.program.output_names, self.program.outputs(), strict=True):
            grid = self.grids.get(result.name)
            integer = grid is not None and self.integer_io
            source = self.quantized[result] if integer else self.tensors[result]
            image = self.channels_last and len(self.program.shape(result)) == 4
            tensor = (
                self.graph.node("Transpose", [source], name, perm=list(LAST))
                if image
                else self.graph.node("Identity", [source], name)
            )
            real = str(result.meta["dtype"]).removeprefix("torch.")
            dtype = DTYPES[grid.dtype if integer and grid else real]
            shape: list[Any] = list(self.program.shape(result))
            if image:
                shape = [shape[axis] for axis in LAST]
            if self.dynamic and self.program.origin.dynamic:
                shape = [
                    s if d == 1 and len(shape) == 4 else f"{name}_{d}" for d, s in enumerate(shape)
                ]
            self.outputs.append(helper.make_tensor_value_info(tensor, dtype, shape))

    def _dims(self, index: int, shape: Sequence[int]) -> list[Any]:
        names = {0: "batch", 2: "height", 3: "width"}
        free = {d for i, d in self.program.origin.dynamic if i == index} if self.dynamic else set()
        return [names.get(d, f"dim_{d}") if d in free else size for d, size in enumerate(shape)]

    # --- nodes ---

    def _node(self, node: fx.Node) -> None:
        name = ops.name_of(self.program, node)
        if name == "constant":
            self.tensors[node] = self._constant(node.name, self.program.constant(node))
        elif name == "shape":
            self.tensors[node] = self._size(node)
        elif name == "requantize":
            source = node.all_input_nodes[0]
            self.tensors[node] = self.tensors[source]
            if node.name in self.grids and source.name not in self.grids:
                self.tensors[node] = self._quantize(node, self.tensors[source])
        else:
            result = self._compute(node, name)
            grid = self.inner(self.program, node) if self.inner else None
            if grid is not None:
                result = self._between(f"{node.name}.ignored", result, grid)
            self.tensors[node] = self._quantize(node, result) if node.name in self.grids else result

    def _compute(self, node: fx.Node, name: str) -> str:
        module = self.program.get(node) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            return self._layer(node, "ConvTranspose" if module.transposed else "Conv", module)
        if isinstance(module, nn.Linear):
            return self._linear(node, module)
        if name in self.rules and self.program.quantization is not None:
            return self.rules[name](self.graph, self.program, node, self._operands(node))
        if name in SIZED_OPS:
            source = self.tensors[node.all_input_nodes[0]]
            return SIZED_OPS[name](self.graph, self.program, node, source, self._size_of)
        if name in FLOAT_OPS:
            return FLOAT_OPS[name](self.graph, self.program, node, self._operands(node))
        inputs = [self.tensors[operand] for operand in node.all_input_nodes]
        return foreign.inline_node(self.graph, self.program, node, inputs)

    def _operands(self, node: fx.Node) -> list[str]:
        return [self._operand(node, arg) for arg in flat_arguments(node)]

    def _operand(self, node: fx.Node, arg: Any) -> str:
        if not isinstance(arg, fx.Node):
            return self._constant(f"{node.name}.operand", arg)
        if ops.name_of(self.program, arg) == "shape":  # a size as a factor or a summand
            return self.graph.node(
                "Cast", [self.tensors[arg]], f"{node.name}.{arg.name}", to=DTYPES["float32"]
            )
        return self.tensors[arg]

    def _layer(self, node: fx.Node, op: str, module: nn.Conv2d | nn.ConvTranspose2d) -> str:
        inputs = [self._source_of(node), *self._parameters(node, module)]
        return self.graph.node(op, inputs, node.name, **conv_attributes(module))

    def _linear(self, node: fx.Node, module: nn.Linear) -> str:
        source = node.all_input_nodes[0]
        parameters = self._parameters(node, module)
        if len(self.program.shape(source)) == 2:
            inputs = [self._source_of(node), *parameters]
            return self.graph.node("Gemm", inputs, node.name, transB=1)
        turned = self.graph.node("Transpose", parameters[:1], f"{node.name}.weight_t", perm=[1, 0])
        product = self.graph.node("MatMul", [self.tensors[source], turned], f"{node.name}.product")
        return (
            self.graph.node("Add", [product, parameters[1]], node.name)
            if parameters[1:]
            else product
        )

    def _source_of(self, node: fx.Node) -> str:
        """What a layer reads.

        The runtime quantizes the weights of a float layer between two quantizers by itself, with
        one scale for all channels, and so undoes `keep`. The maximum of one value stops it.
        """
        source = node.all_input_nodes[0]
        if source.name not in self.grids or f"{node.target}.weight" in self.integers:
            return self.tensors[source]
        return self.graph.node("Max", [self.tensors[source]], f"{node.name}.kept")

    def _parameters(self, node: fx.Node, module: Any) -> list[str]:
        names = ["weight"] + (["bias"] if module.bias is not None else [])
        return [
            self._constant(f"{node.target}.{name}", getattr(module, name).detach())
            for name in names
        ]

    def _size_of(self, value: Any) -> str:
        return self.tensors[value] if isinstance(value, fx.Node) else self.graph.integers(value)

    def _size(self, node: fx.Node) -> str:
        """Sizes are int64 vectors of one element."""
        if node.target is ops.sym_size:
            source, dim = node.args
            assert isinstance(source, fx.Node)
            assert isinstance(dim, int)
            return self.graph.node(
                "Shape",
                [self.quantized.get(source, self.tensors[source])],
                node.name,
                start=dim,
                end=dim + 1 if dim != -1 else None,
            )
        kinds = {operator.add: "Add", operator.sub: "Sub", operator.mul: "Mul"}
        kinds |= {operator.floordiv: "Div", operator.mod: "Mod"}
        inputs = [self._size_of(value) for value in node.args]
        return self.graph.node(kinds[node.target], inputs, node.name)  # type: ignore[index]

    # --- grids ---

    def _quantize(self, node: fx.Node, tensor: str) -> str:
        """Quantize a node's float tensor; returns the dequantized tensor its readers take."""
        result = self._between(node.name, tensor, self.grids[node.name])
        self.quantized[node] = self.graph.integers_of(result)
        return result

    def _between(self, name: str, tensor: str, grid: Grid) -> str:
        inputs = [tensor, *self.graph.grid(grid)]
        integers = self.graph.node("QuantizeLinear", inputs, f"{name}.quantized")
        return self._dequantize(name, integers, grid)

    def _dequantize(self, name: str, integers: str, grid: Grid) -> str:
        return self.graph.dequantize(name, integers, grid)

    def _constant(self, name: str, value: Tensor | float) -> str:
        if name in self.integers:
            grid = self.grids[name]
            frozen = self.integers[name].numpy().astype(grid.dtype)
            return self._dequantize(name, self.graph.initializer(name, frozen), grid)
        array: npt.NDArray[Any] = (
            value.detach().numpy() if isinstance(value, Tensor) else np.float32(value)  # type: ignore[assignment]
        )
        return self.graph.initializer(name, array)
