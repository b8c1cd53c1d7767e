"""Translate a program to a TFLite file: float, or integers from the program's quantization table.

A value on a grid is one int8 or int16 tensor that carries the grid's scale and zero point, under
the value's name. Where a node runs in float between such values, DEQUANTIZE and QUANTIZE stand at
its edges. A value that a later activation absorbs has no tensor of its own: the layer writes the
activation's, whose grid saturates where the activation cuts. Grids of 16 bits do not, for their
zero point is 0, nor does that of a concat, which its other parts share: there the layer has a fused
activation, or a MAXIMUM and a MINIMUM behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor, fx, nn

from fuseq import ops
from fuseq.backends.tflite.arrangement import (
    copied,
    inverse,
    reshaped_value,
    stored_axes,
    stored_shape,
    transposed,
)
from fuseq.backends.tflite.file import Array, File
from fuseq.backends.tflite.forms import FORMS
from fuseq.backends.tflite.layers import (
    Stored,
    Weights,
    as_metadata,
    write_layer,
)
from fuseq.backends.tflite.order import block_orders
from fuseq.backends.tflite.site import NO_ACTIVATION, Site
from fuseq.program import Program
from fuseq.quant.grid import Grid
from fuseq.quant.structure import bounds, flat_arguments

_BROADCAST = frozenset({"add", "sub", "mul", "div"})

_FUSED: Mapping[tuple[float, float], int] = {
    (0.0, math.inf): schema.ActivationFunctionType.RELU,
    (0.0, 6.0): schema.ActivationFunctionType.RELU6,
    (-1.0, 1.0): schema.ActivationFunctionType.RELU_N1_TO_1,
}
"""Interval -> the activation that cuts to it."""


def to_tflite(
    program: Program, edge: Callable[[Grid], Grid | None], layout: str, resizable: bool
) -> bytes:
    """TFLite file of a program.

    Args:
        program: float or quantized, at fixed sizes.
        edge: grid on which the file takes or gives a value of a grid, or None for floats.
        layout: "nhwc" or "nchw": of inputs and outputs of four dimensions.
        resizable: height and width of the inputs may be changed, as far as the program allows.

    Returns:
        The same bytes every time.
    """
    return _Emitter(program, edge, layout, resizable).run()


class _Emitter:
    def __init__(
        self,
        program: Program,
        edge: Callable[[Grid], Grid | None],
        layout: str,
        resizable: bool,
    ) -> None:
        self.program, self.file = program, File()
        self.edge, self.layout, self.resizable = edge, layout, resizable
        table = program.quantization
        self.grids: Mapping[str, Grid] = table.grids if table else {}
        self.integers: Mapping[str, Tensor] = table.integers if table else {}
        self.integer: frozenset[str] = table.integer if table else frozenset()
        self.absorbed: Mapping[str, str] = table.absorbed if table else {}
        self.blocks = block_orders(program)
        self.tensors: dict[fx.Node, int] = {}  # on its grid where a value has one
        self.reals: dict[fx.Node, int] = {}  # the same values in float
        self.stored: dict[str, Stored] = {}

    def run(self) -> bytes:
        inputs = {}
        named = zip(self.program.input_names, self.program.inputs(), strict=True)
        for position, (name, node) in enumerate(named):
            free = [d for i, d in self.program.origin.dynamic if i == position and self.resizable]
            inputs[name] = self._input(name, node, free)
        for node in self.program.graph.nodes:
            if node.op not in ("placeholder", "output", "get_attr"):
                self._node(node)
        outputs: dict[str, int] = {}
        for name, node in zip(self.program.output_names, self.program.outputs(), strict=True):
            outputs[name] = self._output(name, node, {*inputs.values(), *outputs.values()})
        return self.file.serialized(inputs, outputs, self._metadata())

    def _metadata(self) -> dict[str, Any]:
        """What readers of the file need to compare it with the program, value by value."""
        values = {self._name(node): index for node, index in self.tensors.items()}
        blocks = {self._name(node): block for node, block in self.blocks.items()}
        return {
            "format": 1,
            "layout": self.layout,
            "values": {name: self.file.name(index) for name, index in values.items()},
            "block_order": blocks,
            "constants": as_metadata(self.stored),
        }

    # --- interface ---

    def _input(self, name: str, node: fx.Node, free: Sequence[int]) -> int:
        shape, grid = self.program.shape(node), self._grid(node)
        axes = stored_axes(len(shape)) if self.layout == "nhwc" else tuple(range(len(shape)))
        outside = [shape[axis] for axis in axes]
        kind, edge = self._edge(node)
        first = self.file.tensor(name, outside, kind, edge, free=[axes.index(d) for d in free])
        index = first
        if self._turns(shape):
            index = self.file.like(first, f"{name}.nhwc", stored_shape(shape))
            transposed(self.file, first, shape, stored_axes(len(shape)), index)
        if grid is not None and edge != grid:
            index = self._moved(index, node.name, grid)
        self.tensors[node] = index
        return first

    def _turns(self, shape: Sequence[int]) -> bool:
        """Whether a value lies otherwise outside: an image, be it as wide and high as deep."""
        return self.layout == "nchw" and len(shape) >= 4

    def _edge(self, node: fx.Node) -> tuple[str, Grid | None]:
        """Dtype and grid with which the caller gives or takes a value."""
        grid = self._grid(node)
        edge = self.edge(grid) if grid else None
        if edge is not None:
            return edge.dtype, edge
        return str(node.meta["dtype"]).removeprefix("torch."), None

    def _output(self, name: str, node: fx.Node, taken: set[int]) -> int:
        index, grid = self.tensors[node], self._grid(node)
        shape = self.program.shape(node)
        _, edge = self._edge(node)
        if grid is not None and edge != grid:
            index = self._dequantized(node) if edge is None else self._moved(index, name, edge)
        if self._turns(shape):
            turned = self.file.like(index, f"{name}.nchw", shape)
            axes = inverse(stored_axes(len(shape)))
            index = transposed(self.file, index, stored_shape(shape), axes, turned)
        if index in taken:  # an input, or another output: a tensor of its own
            index = copied(self.file, index, self.file.like(index, name, self.file.shapes[index]))
        return index

    # --- nodes ---

    def _node(self, node: fx.Node) -> None:
        name = ops.name_of(self.program, node)
        operands = node.all_input_nodes
        if operands and operands[0].name in self.absorbed:
            self.tensors[node] = self.tensors[operands[0]]
        elif name == "requantize":
            self._requantize(node)
        elif node.name in self.integer:
            value = self._name(node)
            self.tensors[node] = self._computed(node, name, value, self.grids[value])
        else:
            grid = self._grid(node)
            result = self._computed(node, name, node.name + ".float" * (grid is not None), None)
            self.tensors[node] = result if grid is None else self._moved(result, node.name, grid)

    def _requantize(self, node: fx.Node) -> None:
        source, grid = node.all_input_nodes[0], self._grid(node)
        index = self.tensors[source]
        same = grid is None or grid == self._grid(source)
        self.tensors[node] = index if same or grid is None else self._moved(index, node.name, grid)

    def _computed(self, node: fx.Node, name: str, result: str, grid: Grid | None) -> int:
        dtype = grid.dtype if grid else "float32"
        shape = self.program.shape(node)
        output = self.file.tensor(result, stored_shape(shape), dtype, grid)
        ends = self.program.quantization.cut_to(node) if self.program.quantization else None
        if grid is None or ends is None:
            return self._written(node, name, output, grid)
        (activation,) = node.users
        fused = _FUSED.get(_in_32_bits(bounds(activation), grid), NO_ACTIVATION)
        if fused != NO_ACTIVATION and ends == _ends_in_xnnpack(activation, grid):
            return self._written(node, name, output, grid, fused)
        whole = self.file.like(output, f"{node.name}.whole", stored_shape(shape))
        self._written(node, name, whole, grid)
        _cut(self.file, activation.name, whole, output, ends)
        return output

    def _written(
        self,
        node: fx.Node,
        name: str,
        output: int,
        grid: Grid | None,
        fused: int = NO_ACTIVATION,
    ) -> int:
        module = self.program.get(node) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            source = node.all_input_nodes[0]
            self.stored |= write_layer(
                self.file,
                module,
                self._weights(node, module, grid),
                self._value(source, grid),
                output,
                self.blocks.get(source, 0),
                self.blocks.get(node, 0),
                fused,
            )
            return output
        deep = node if name == "pixel_unshuffle" else next(iter(node.all_input_nodes), node)
        inputs = [self._operand(node, arg, grid) for arg in flat_arguments(node)]
        FORMS[name](Site(self.file, self.program, node, inputs, output, deep in self.blocks, fused))
        return output

    def _operand(self, node: fx.Node, arg: Any, grid: Grid | None) -> int:
        rank = len(self.program.shape(node))
        if not isinstance(arg, fx.Node):
            return self._constant(f"{node.name}.operand", torch.tensor(float(arg)), rank, grid)
        if arg.op == "get_attr":
            return self._constant(arg.name, self.program.constant(arg), rank, grid)
        index, shape = self._value(arg, grid), self.program.shape(arg)
        if ops.name_of(self.program, node) not in _BROADCAST or len(shape) in (0, rank) or rank < 4:
            return index
        raised = (1,) * (rank - len(shape)) + tuple(shape)  # broadcasts as torch does
        wide = self.file.like(index, f"{arg.name}.raised", stored_shape(raised))
        return reshaped_value(self.file, index, shape, raised, wide)

    def _constant(self, name: str, real: Tensor, rank: int, grid: Grid | None) -> int:
        """A constant operand of a value with `rank` dimensions."""
        frozen = grid is not None and name in self.integers
        tensor = self.integers[name] if frozen else real.detach().float()
        own = self.grids[name] if frozen else None
        array: Array = tensor.numpy().astype(own.dtype if own else np.float32)
        shape = array.shape
        axes = tuple(range(array.ndim))
        if array.ndim and rank >= 4:
            axes = stored_axes(rank)
            array = array.reshape((1,) * (rank - array.ndim) + shape).transpose(axes)
        if own is not None:
            self.stored[name] = Stored(axes, shape=shape)
        return self.file.constant(name, array, own)

    def _weights(self, node: fx.Node, layer: Any, grid: Grid | None) -> Weights:
        path = str(node.target)
        if grid is None:
            bias = None if layer.bias is None else _array(layer.bias)
            return Weights(path, _array(layer.weight), bias)
        names = (f"{path}.weight", f"{path}.bias")
        frozen = [self.integers[name].numpy() if name in self.integers else None for name in names]
        assert frozen[0] is not None
        return Weights(path, frozen[0], frozen[1], self.grids[names[0]], self.grids.get(names[1]))

    # --- grids ---

    def _name(self, node: fx.Node) -> str:
        """Name of a node's value in the table."""
        return self.absorbed.get(node.name, node.name)

    def _grid(self, node: fx.Node) -> Grid | None:
        return self.grids.get(self._name(node))

    def _value(self, node: fx.Node, grid: Grid | None) -> int:
        """A value for an op that computes on grids, or in float where `grid` is None."""
        return self._dequantized(node) if grid is None else self.tensors[node]

    def _dequantized(self, node: fx.Node) -> int:
        index = self.tensors[node]
        if self._grid(node) is None:
            return index
        if node not in self.reals:
            shape = self.file.shapes[index]
            real = self.file.tensor(f"{node.name}.dequantized", shape, "float32")
            self.reals[node] = self.file.op("DEQUANTIZE", [index], real, "Dequantize")
        return self.reals[node]

    def _moved(self, index: int, name: str, grid: Grid) -> int:
        moved = self.file.tensor(name, self.file.shapes[index], grid.dtype, grid)
        return self.file.op("QUANTIZE", [index], moved, "Quantize")


def _in_32_bits(interval: tuple[float, float], grid: Grid) -> tuple[float, float]:
    """An interval without the ends that are too many steps away: LiteRT loads no such file."""
    limit = (2**31 - 1) * float(grid.scale)
    low, high = interval
    return (low if -low < limit else -math.inf, high if high < limit else math.inf)


def _ends_in_xnnpack(activation: fx.Node, grid: Grid) -> tuple[int, int]:
    """Integers at which XNNPACK cuts: halves to even, where LiteRT's own kernels have them away."""
    scale, zero_point = np.float32(grid.scale.item()), np.float32(grid.zero_point.item())
    steps = (np.rint(np.float32(bound) / scale + zero_point) for bound in bounds(activation))
    low, high = (int(min(max(n, grid.qmin), grid.qmax)) for n in steps)
    return low, high


def _cut(file: File, name: str, source: int, output: int, ends: tuple[int, int]) -> None:
    """Cut integers to an interval on the grid they have.

    Args:
        file: to write to.
        name: of the op, for inner tensors.
        source: tensor to cut.
        output: tensor of the result, on the same grid.
        ends: smallest and largest integer that is left.
    """
    grid = file.grids[output]
    assert grid is not None
    both = (("MAXIMUM", ends[0], grid.qmin), ("MINIMUM", ends[1], grid.qmax))
    steps = [(code, end) for code, end, last in both if end != last]
    for code, end in steps:
        bound = file.constant(f"{name}.bound", np.array([end], grid.dtype), grid)
        result = output
        if code != steps[-1][0]:
            result = file.like(output, f"{name}.{code.lower()}", file.shapes[output])
        source = file.op(code, [source, bound], result, "MaximumMinimum")


def _array(tensor: Tensor) -> Array:
    array: Array = tensor.detach().float().numpy()
    return array
