"""Every fault that can be planted in an int8 TFLite file, found on its operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from fuseq.backends.tflite.file import packed, unpacked
from fuseq.backends.tflite.graph import read_graph
from fuseq.program import Program
from tests.faults.fault import (
    BIAS_EDITS,
    CHANNEL_SCALE_EDITS,
    SCALE_EDITS,
    WEIGHT_EDITS,
    Edit,
    Fault,
    changes,
    window_edits,
)

LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")
OTHERS = {
    "ADD": "SUB", "SUB": "ADD", "MUL": "ADD", "TANH": "LOGISTIC", "LOGISTIC": "TANH",
    "MAX_POOL_2D": "AVERAGE_POOL_2D", "AVERAGE_POOL_2D": "MAX_POOL_2D",
    "MAXIMUM": "MINIMUM", "MINIMUM": "MAXIMUM", "RELU": "RELU6",
}  # fmt: skip
OPTIONS: dict[str, Callable[[Any], Any]] = {
    "alpha": lambda value: value * 1.5,
    "halfPixelCenters": lambda value: not value,
    "fusedActivationFunction": lambda value: 1 if value == 0 else 0,
}
"""Fields of an operator's options that keep every shape, with what gives them another value."""


class TfliteFile:
    """A good file, its tensors by name, and the program it was written from."""

    def __init__(self, data: bytes, program: Program) -> None:
        self.graph = unpacked(data).subgraphs[0]
        read = read_graph(data)
        self.codes = [operator.code for operator in read.operators]
        self.tensors = read.tensors
        self.names = [tensor.name for tensor in self.tensors]
        values: Mapping[str, str] = read.metadata["values"]
        self.values: dict[str, set[str]] = {}
        for name, tensor in values.items():
            self.values.setdefault(tensor, set()).add(name)
        self.nodes = {node.name for node in program.graph.nodes}

    def faults(self) -> Iterator[Fault]:
        """Every fault."""
        seen: set[int] = set()
        for position, (operator, code) in enumerate(
            zip(self.graph.operators, self.codes, strict=True)
        ):
            blamed = self._values_after(operator.outputs[0])
            if not blamed:
                continue
            for index in operator.inputs:
                if index >= 0 and index not in seen and self.tensors[index].content is not None:
                    seen.add(index)
                    yield from self._of_constant(index, code, self._values_that_read(index))
            yield from self._of_op(position, operator, code, blamed)
        for index, name in enumerate(self.names):
            if name in self.values:
                yield from self._of_value(index, frozenset(self.values[name]))

    # --- constants ---

    def _of_constant(self, index: int, code: str, blamed: frozenset[str]) -> Iterator[Fault]:
        tensor, value = self.graph.tensors[index], self.tensors[index].content
        assert value is not None
        scales = self.tensors[index].scales
        if tensor.type == schema.TensorType.INT32 and not len(scales):
            if value.shape == (4, 2) and np.any(value):
                moved = np.array(value)
                moved[1] += (1, -1) if value[1][1] else (-1, 1)
                if moved.min() >= 0 and not np.array_equal(moved, value):
                    yield self._constant("padding: moved by one", index, lambda _: moved, blamed)
            return
        if not len(scales):
            return
        if value.dtype == np.int32:
            edits = dict(BIAS_EDITS)
        elif code in LAYERS:
            edits = dict(WEIGHT_EDITS)
            if value.ndim == 4 and value.shape[1:3] != (1, 1):
                edits |= window_edits(1, 2)
            if value.ndim == 4 and value.shape[0] == value.shape[3]:
                edits["layout: outputs and inputs exchanged"] = lambda w: np.ascontiguousarray(
                    w.swapaxes(0, 3)
                )
        else:
            edits = {"constant: one more": lambda c: c - np.sign(c) * (c != 0) + (c == 0)}
        for kind, edit in edits.items():
            if changes(edit, value):
                yield self._constant(kind, index, edit, blamed)
        part = "bias" if value.dtype == np.int32 else "weight" if code in LAYERS else "constant"
        for kind, edit in (CHANNEL_SCALE_EDITS if len(scales) > 1 else SCALE_EDITS).items():
            if changes(edit, scales):
                yield self._grid(f"{kind}, of a {part}", index, "scale", edit, blamed)

    # --- values ---

    def _of_value(self, index: int, blamed: frozenset[str]) -> Iterator[Fault]:
        tensor = self.graph.tensors[index]
        for kind, edit in SCALE_EDITS.items():
            yield self._grid(f"{kind}, of a value", index, "scale", edit, blamed)
        zero_point = np.array(tensor.quantization.zeroPoint)
        for kind, edit in {
            "zero point: one more": lambda z: z + (z < 127) * 1 - (z == 127) * 1,
            "zero point: zero": lambda z: z * 0,
        }.items():
            if changes(edit, zero_point):
                yield self._grid(kind, index, "zeroPoint", edit, blamed)

    # --- ops ---

    def _of_op(
        self, position: int, operator: Any, code: str, blamed: frozenset[str]
    ) -> Iterator[Fault]:
        place = f"{code} {self.names[operator.outputs[0]]}"
        if code in OTHERS:
            change = partial(_replace, OTHERS[code])
            yield self._op("op: another one", place, position, change, blamed)
        inputs = [i for i in operator.inputs if i >= 0 and self.tensors[i].content is None]
        if code in ("SUB", "DIV", "CONCATENATION") and len(set(inputs)) > 1:
            yield self._op("operands: exchanged", place, position, _exchange, blamed)
        if code in ("ADD", "MUL", "SUB", "CONCATENATION") and len(set(inputs)) > 1:
            yield self._op("operands: one twice", place, position, _one_twice, blamed)
        shape = [list(self.graph.tensors[i].shape) for i in (*inputs[:1], operator.outputs[0])]
        if inputs and shape[0] == shape[1] and code not in ("RESHAPE", "TRANSPOSE"):
            yield self._op("op: left out", place, position, _leave_out, blamed)
        if inputs and code != "CONCATENATION":
            written = [o.outputs[0] for o in self.graph.operators[:position]]
            others = [
                i
                for i in (*self.graph.inputs, *written)
                if i not in inputs
                and list(self.graph.tensors[i].shape) == shape[0]
                and self.graph.tensors[i].type == self.graph.tensors[inputs[0]].type
            ]
            if others:
                change = partial(_read, inputs[0], others[-1])
                yield self._op("operands: another layer's", place, position, change, blamed)
        for field, other in OPTIONS.items():
            value = getattr(operator.builtinOptions, field, None)
            # Nearest neighbours at twice the size are the same from half pixels.
            fits = {"fusedActivationFunction": LAYERS, "halfPixelCenters": ("RESIZE_BILINEAR",)}
            if value is None or code not in fits.get(field, (code,)):
                continue
            change = partial(_set, field, other(value))
            yield self._op(f"attribute: {field}", place, position, change, blamed)

    # --- planting ---

    def _constant(self, kind: str, index: int, edit: Edit, blamed: frozenset[str]) -> Fault:
        def change(model: Any) -> None:
            value = self.tensors[index].content
            assert value is not None
            after = np.ascontiguousarray(edit(value.copy()).astype(value.dtype))
            own = schema.BufferT()  # another operator may read the same buffer
            own.data = np.frombuffer(after.tobytes(), np.uint8)
            model.buffers.append(own)
            model.subgraphs[0].tensors[index].buffer = len(model.buffers) - 1

        return Fault(kind, self.names[index], blamed, partial(_planted, change))

    def _grid(self, kind: str, index: int, field: str, edit: Edit, blamed: frozenset[str]) -> Fault:
        def change(model: Any) -> None:
            grid = model.subgraphs[0].tensors[index].quantization
            before = np.asarray(getattr(grid, field))
            setattr(grid, field, edit(before.copy()).astype(before.dtype))

        return Fault(kind, self.names[index], blamed, partial(_planted, change))

    def _op(
        self,
        kind: str,
        place: str,
        position: int,
        change: Callable[[Any, Any], None],
        blamed: frozenset[str],
    ) -> Fault:
        def edit(model: Any) -> None:
            change(model.subgraphs[0].operators[position], model)

        return Fault(kind, place, blamed, partial(_planted, edit))

    # --- reading ---

    def _values_that_read(self, index: int) -> frozenset[str]:
        """What the operators compute that read a constant, which several may share."""
        readers = [o for o in self.graph.operators if index in list(o.inputs)]
        return frozenset().union(*(self._values_after(o.outputs[0]) for o in readers))

    def _values_after(self, index: int) -> frozenset[str]:
        """The program's values that a tensor holds, or else those that it leads to first."""
        found: set[str] = set()
        todo = [index]
        while todo:
            name = self.names[(at := todo.pop())]
            if name in self.values:
                found |= self.values[name]
                continue
            todo += [o.outputs[0] for o in self.graph.operators if at in list(o.inputs)]
        return frozenset(found)


def _planted(change: Callable[[Any], None], data: bytes) -> bytes:
    model = unpacked(data)
    for operator in model.subgraphs[0].operators:
        operator.inputs, operator.outputs = list(operator.inputs), list(operator.outputs)
    change(model)
    return packed(model)


def _code(model: Any, name: str) -> int:
    """An operator code of the file, added where the file has none; in the version for int8."""
    code = getattr(schema.BuiltinOperator, name)
    found = schema.OperatorCodeT()
    found.builtinCode, found.deprecatedBuiltinCode, found.version = code, min(code, 127), 2
    model.operatorCodes.append(found)
    return len(model.operatorCodes) - 1


def _replace(name: str, operator: Any, model: Any) -> None:
    operator.opcodeIndex = _code(model, name)
    if name in ("ADD", "SUB"):
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, f"{name.title()}Options")
        operator.builtinOptions = getattr(schema, f"{name.title()}OptionsT")()


def _exchange(operator: Any, model: Any) -> None:
    operator.inputs[0], operator.inputs[1] = operator.inputs[1], operator.inputs[0]


def _one_twice(operator: Any, model: Any) -> None:
    operator.inputs[1] = operator.inputs[0]


def _read(before: int, after: int, operator: Any, model: Any) -> None:
    operator.inputs = [after if i == before else i for i in operator.inputs]


def _leave_out(operator: Any, model: Any) -> None:
    """A copy instead: a move to the grid of the result."""
    operator.inputs = operator.inputs[:1]
    operator.opcodeIndex = _code(model, "QUANTIZE")
    operator.builtinOptionsType, operator.builtinOptions = 0, None


def _set(field: str, value: Any, operator: Any, model: Any) -> None:
    setattr(operator.builtinOptions, field, value)
