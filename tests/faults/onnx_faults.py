"""Every fault that can be planted in a QDQ file, found on its graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fuseq.program import Program
from tests.faults.fault import (
    BIAS_EDITS,
    CHANNEL_SCALE_EDITS,
    FINE,
    SCALE_EDITS,
    WEIGHT_EDITS,
    Edit,
    Fault,
    changes,
    window_edits,
)

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
OTHERS = {
    "Add": "Sub", "Sub": "Add", "Mul": "Add", "Relu": "Neg", "Tanh": "Sigmoid", "Sigmoid": "Tanh",
    "LeakyRelu": "Relu", "HardSigmoid": "Sigmoid", "MaxPool": "AveragePool", "Max": "Min",
    "Min": "Max", "GlobalAveragePool": "GlobalMaxPool", "ReduceMean": "ReduceSum",
}  # fmt: skip
Change = Callable[[onnx.ModelProto], None]


class QdqFile:
    """A good file, its values by name, and the program it was written from."""

    def __init__(self, data: bytes, program: Program) -> None:
        self.model = onnx.load_from_string(data)
        self.program = program
        self.nodes = {n.name: n for n in self.model.graph.node}
        self.constants = {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.shapes = {
            n.name: tuple(n.meta["shape"]) for n in program.graph.nodes if "shape" in n.meta
        }

    def faults(self) -> Iterator[Fault]:
        """Every fault; each is of a kind of its own or shares it with others."""
        for node in self.model.graph.node:
            if node.op_type == "DequantizeLinear" and node.input[0] in self.constants:
                yield from self._of_constant(node)
            elif node.op_type == "QuantizeLinear":
                yield from self._of_value(node)
            elif node.op_type not in ("DequantizeLinear", "Identity"):
                yield from self._of_op(node)

    # --- constants ---

    def _of_constant(self, node: onnx.NodeProto) -> Iterator[Fault]:
        name = node.input[0]
        (layer, *_) = self.readers[node.output[0]]
        value, scale = self.constants[name], self.constants[node.input[1]]
        blamed = self._values_after(layer)
        if name.endswith(".bias") or layer.op_type in LAYERS:
            for kind, edit in _edits(name, value).items():
                if changes(edit, value):
                    yield self._constant(kind, node, 0, edit, blamed)
        own = CHANNEL_SCALE_EDITS if scale.size > 1 else SCALE_EDITS
        part = "bias" if name.endswith(".bias") else "weight"
        for kind, edit in own.items():
            if changes(edit, scale):
                yield self._constant(f"{kind}, of a {part}", node, 1, edit, blamed)

    # --- values ---

    def _of_value(self, node: onnx.NodeProto) -> Iterator[Fault]:
        value = node.name.removesuffix(".quantized")
        if value not in self.shapes:
            return
        blamed = frozenset({value})
        zero_point = self.constants[node.input[2]]
        for kind, edit in SCALE_EDITS.items():
            yield self._constant(f"{kind}, of a value", node, 1, edit, blamed)
        high = np.iinfo(zero_point.dtype).max
        for kind, edit in {
            "zero point: one more": lambda z: z + (z < high) * 1 - (z == high) * 1,
            "zero point: zero": lambda z: z * 0,
        }.items():
            typed: Edit = partial(_as, edit, zero_point.dtype)
            if changes(typed, zero_point):
                yield self._constant(kind, node, 2, typed, blamed)
        if zero_point.dtype == np.uint8 and zero_point < 128:
            yield self._constant(
                "dtype: int8 for uint8", node, 2, lambda z: z.astype(np.int8), blamed
            )

    # --- ops ---

    def _of_op(self, node: onnx.NodeProto) -> Iterator[Fault]:
        blamed = self._values_after(node)
        if not blamed:
            return
        if node.op_type in OTHERS:
            yield self._op("op: another one", node, blamed, partial(_replace, OTHERS[node.op_type]))
        reals = [name for name in node.input if name not in self.constants and name]
        values = [_value(name) for name in reals]
        if node.op_type in ("Sub", "Div", "Concat") and len(set(reals)) > 1:
            yield self._op("operands: exchanged", node, blamed, _exchange)
        if node.op_type in ("Add", "Mul", "Sub", "Concat") and len(set(reals)) > 1:
            yield self._op("operands: one twice", node, blamed, _one_twice)
        if values and node.output[0] in self.shapes:
            same = self.shapes.get(values[0]) == self.shapes[node.output[0]]
            moves = node.op_type in ("Reshape", "Transpose", "Identity")
            if same and not moves:
                yield self._op("op: left out", node, blamed, _leave_out)
        if values and node.op_type != "Concat":
            others = [
                name
                for name in self._before(node)
                if self.shapes.get(_value(name)) == self.shapes.get(values[0]) and name not in reals
            ]
            if others:
                change = partial(_read, reals[0], others[-1])
                yield self._op("operands: another layer's", node, blamed, change)
        for attribute in node.attribute:
            changed = _other_attribute(node, attribute)
            if changed is not None:
                kind = f"{'padding' if attribute.name == 'pads' else 'attribute'}: {attribute.name}"
                yield self._op(kind, node, blamed, partial(_set, changed))

    def _before(self, node: onnx.NodeProto) -> list[str]:
        """Reals that are there before a node is computed."""
        found = []
        for other in self.model.graph.node:
            if other.name == node.name:
                break
            if other.op_type == "DequantizeLinear" and other.input[0] not in self.constants:
                found.append(other.name)
        return found

    def _values_after(self, node: onnx.NodeProto) -> frozenset[str]:
        """The node's own value, and the first on a grid that it reaches."""
        found, todo = set(node.output) & set(self.shapes), [*node.output]
        while todo:
            for reader in self.readers.get(todo.pop(), ()):
                if reader.op_type == "QuantizeLinear":
                    found.add(reader.name.removesuffix(".quantized"))
                else:
                    todo += reader.output
        return frozenset(found)

    # --- planting ---

    def _constant(
        self, kind: str, node: onnx.NodeProto, operand: int, edit: Edit, blamed: frozenset[str]
    ) -> Fault:
        def change(model: onnx.ModelProto) -> None:
            nodes = {n.name: n for n in model.graph.node}
            before = nodes[node.name].input[operand]
            after = edit(self.constants[before]).astype(edit(self.constants[before]).dtype)
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(after), "planted"))
            # Both halves of a quantizer alike: an emitter that is wrong is wrong in both.
            for name in (node.name, node.name.replace(".quantized", ".dequantized")):
                if name in nodes and nodes[name].input[operand] == before:
                    nodes[name].input[operand] = "planted"

        return Fault(kind, node.name, blamed, partial(_planted, change))

    def _op(
        self,
        kind: str,
        node: onnx.NodeProto,
        blamed: frozenset[str],
        change: Callable[[onnx.NodeProto, onnx.ModelProto], None],
    ) -> Fault:
        def edit(model: onnx.ModelProto) -> None:
            change(next(n for n in model.graph.node if n.name == node.name), model)

        place = f"{node.op_type} {node.name}"
        return Fault(kind, place, blamed, partial(_planted, edit))


class FloatFile(QdqFile):
    """The float file: its layers read their weights themselves."""

    def faults(self) -> Iterator[Fault]:
        """Every fault that is no matter of rounding."""
        for node in self.model.graph.node:
            blamed = self._values_after(node)
            if node.op_type in LAYERS:
                for operand, name in enumerate(node.input):
                    value = self.constants.get(name)
                    edits = {} if value is None else _edits(name, value)
                    for kind, edit in edits.items():
                        if kind not in FINE and value is not None and changes(edit, value):
                            yield self._constant(kind, node, operand, edit, blamed)
            if node.op_type != "Identity":
                yield from self._of_op(node)

    def _before(self, node: onnx.NodeProto) -> list[str]:
        names = [n.name for n in self.model.graph.node]
        before = self.model.graph.node[: names.index(node.name)]
        return [n.output[0] for n in before if n.output[0] in self.shapes]

    def _values_after(self, node: onnx.NodeProto) -> frozenset[str]:
        """The node's own value, or the first of the program's that it reaches."""
        found: set[str] = set()
        todo = [*node.output]
        while todo:
            name = todo.pop()
            if name in self.shapes:
                found.add(name)
            else:
                todo += [out for reader in self.readers.get(name, ()) for out in reader.output]
        return frozenset(found)


def _value(name: str) -> str:
    """The value that a real is of."""
    return name.removesuffix(".dequantized")


def _edits(name: str, value: np.ndarray) -> dict[str, Edit]:
    """Faults of a bias or a weight, outputs before inputs."""
    if name.endswith(".bias"):
        return BIAS_EDITS
    edits = dict(WEIGHT_EDITS)
    if value.ndim == 4 and value.shape[2:] != (1, 1):
        edits |= window_edits(2, 3)
    if value.ndim >= 2 and value.shape[0] == value.shape[1]:
        edits["layout: outputs and inputs exchanged"] = lambda w: np.ascontiguousarray(
            w.swapaxes(0, 1)
        )
    return edits


def _planted(change: Change, data: bytes) -> bytes:
    model = onnx.load_from_string(data)
    change(model)
    return model.SerializeToString(deterministic=True)


def _as(edit: Edit, dtype: np.dtype, array: np.ndarray) -> np.ndarray:
    return edit(array.astype(np.int64)).astype(dtype)


def _replace(op: str, node: onnx.NodeProto, model: onnx.ModelProto) -> None:
    if op in ("Relu", "Sigmoid", "Neg"):
        del node.attribute[:]
    if op == "AveragePool":
        kept = [a for a in node.attribute if a.name not in ("storage_order", "dilations")]
        del node.attribute[:]
        node.attribute.extend(kept)
    node.op_type = op


def _exchange(node: onnx.NodeProto, model: onnx.ModelProto) -> None:
    node.input[0], node.input[1] = node.input[1], node.input[0]


def _one_twice(node: onnx.NodeProto, model: onnx.ModelProto) -> None:
    node.input[1] = node.input[0]


def _read(before: str, after: str, node: onnx.NodeProto, model: onnx.ModelProto) -> None:
    for position, name in enumerate(node.input):
        if name == before:
            node.input[position] = after


def _leave_out(node: onnx.NodeProto, model: onnx.ModelProto) -> None:
    del node.input[1:]
    del node.attribute[:]
    node.op_type = "Identity"


def _set(changed: onnx.AttributeProto, node: onnx.NodeProto, model: onnx.ModelProto) -> None:
    next(a for a in node.attribute if a.name == changed.name).CopyFrom(changed)


def _other_attribute(
    node: onnx.NodeProto, attribute: onnx.AttributeProto
) -> onnx.AttributeProto | None:
    """The attribute with another value that keeps every shape."""
    value = helper.get_attribute_value(attribute)
    match attribute.name:
        case "pads" if sum(value) and len(value) == 4:
            top, left, bottom, right = value
            moved = (
                [top - 1, left, bottom + 1, right] if top else [top + 1, left, bottom - 1, right]
            )
            return helper.make_attribute("pads", moved) if min(moved) >= 0 else None
        case "alpha" if node.op_type == "LeakyRelu":
            return helper.make_attribute("alpha", value * 1.5)
        case "mode" if node.op_type == "DepthToSpace":
            return helper.make_attribute("mode", "DCR" if value == b"CRD" else "CRD")
        case "coordinate_transformation_mode" if value != b"align_corners":
            return helper.make_attribute(attribute.name, "align_corners")
        case "perm" if len(value) >= 4:
            return helper.make_attribute(
                "perm", [value[0], value[1], value[3], value[2], *value[4:]]
            )
        case "count_include_pad":
            return helper.make_attribute("count_include_pad", 1 - value)
    return None
