"""A TFLite file as it was read: operators, with the tensors that they read and write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from fuseq.backends.tflite.file import TYPES, Array, metadata_of, operators, unpacked

_DTYPES = {v: name.lower() for name, v in vars(schema.TensorType).items() if name.isupper()}

INDICES: Mapping[str, frozenset[int]] = {
    "BROADCAST_TO": frozenset({1}),
    "EXPAND_DIMS": frozenset({1}),
    "GATHER": frozenset({1}),
    "MEAN": frozenset({1}),
    "MIRROR_PAD": frozenset({1}),
    "PAD": frozenset({1}),
    "PADV2": frozenset({1}),
    "RESHAPE": frozenset({1}),
    "RESIZE_BILINEAR": frozenset({1}),
    "RESIZE_NEAREST_NEIGHBOR": frozenset({1}),
    "SLICE": frozenset({1, 2}),
    "SPLIT": frozenset({0}),
    "SPLIT_V": frozenset({1, 2}),
    "STRIDED_SLICE": frozenset({1, 2, 3}),
    "TILE": frozenset({1}),
    "TRANSPOSE": frozenset({1}),
    "TRANSPOSE_CONV": frozenset({0}),
}
"""Operands that are sizes, axes or positions, not values of the network."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of the file.

    Attributes:
        index: in its graph.
        name: in the file.
        value: name of the program's value that lies in it, if the file says so; else `name`.
        shape: as stored; sizes that the caller may change as they were when it was written.
        dtype: as numpy spells it.
        scales: float32, one, one per channel, or none.
        zero_points: int64, as many.
        axis: dimension of the channels that have a scale each.
        content: of a constant of a known dtype.
        variable: whether it keeps what an earlier run wrote.
    """

    index: int
    name: str
    value: str
    shape: tuple[int, ...]
    dtype: str
    scales: Array
    zero_points: Array
    axis: int
    content: Array | None
    variable: bool

    @property
    def quantized(self) -> bool:
        """Whether it says what its integers stand for."""
        return self.scales.size > 0


@dataclass(frozen=True, eq=False)
class Operator:
    """An operator of the file.

    Attributes:
        index: in the order of execution.
        code: name in the schema.
        version: of the operator.
        inputs: None for an optional operand that is left out.
        outputs: what it writes.
        options: table of the schema's object API, or None where all have their defaults.
    """

    index: int
    code: str
    version: int
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    options: Any

    def option(self, name: str) -> Any:
        """A field of its options; 0 where it has its default."""
        return getattr(self.options, name, 0)

    def operand(self, position: int) -> Tensor | None:
        """An operand, None if it is left out."""
        return self.inputs[position] if position < len(self.inputs) else None

    def integers(self, position: int) -> list[int] | None:
        """Content of a constant operand of integers, None if it is computed or left out."""
        tensor = self.operand(position)
        if tensor is None or tensor.content is None:
            return None
        return [int(n) for n in tensor.content.reshape(-1)]

    @property
    def values(self) -> list[Tensor]:
        """Operands that are values of the network."""
        indices = INDICES.get(self.code, frozenset())
        return [t for i, t in enumerate(self.inputs) if t is not None and i not in indices]

    @property
    def output(self) -> Tensor:
        """What it writes, where that is one tensor."""
        return self.outputs[0]


@dataclass(frozen=True, eq=False)
class Graph:
    """The first graph of a file; others are bodies of conditions and loops.

    Attributes:
        tensors: by index.
        operators: in the order of execution.
        inputs: indices of tensors.
        outputs: the same.
        signatures: of each, name -> tensor index, of inputs and of outputs.
        metadata: what fuseq wrote into the file; empty for a file of others.
    """

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    signatures: tuple[tuple[list[tuple[str, int]], list[tuple[str, int]]], ...]
    metadata: Mapping[str, Any]


def read_graph(data: bytes) -> Graph:
    """The first graph of a TFLite file."""
    model = unpacked(data)
    graph, metadata = model.subgraphs[0], metadata_of(model)
    owners: dict[str, str] = {}
    for value, name in metadata.get("values", {}).items():
        owners[name] = name if name in metadata["values"] else owners.get(name, value)
    tensors = tuple(_tensor(model, i, t, owners) for i, t in enumerate(graph.tensors))
    pairs = zip(graph.operators, operators(model), strict=True)
    return Graph(
        tensors,
        tuple(_operator(model, i, o, code, tensors) for i, (o, code) in enumerate(pairs)),
        _indices(graph.inputs),
        _indices(graph.outputs),
        tuple((_named(s.inputs), _named(s.outputs)) for s in model.signatureDefs or ()),
        metadata,
    )


def _tensor(model: Any, index: int, tensor: Any, owners: Mapping[str, str]) -> Tensor:
    name, dtype = _text(tensor.name), _DTYPES[tensor.type]
    found = tensor.quantization
    scales = () if found is None or found.scale is None else found.scale
    zero_points = () if found is None or found.zeroPoint is None else found.zeroPoint
    shape = _indices(tensor.shape)
    return Tensor(
        index,
        name,
        owners.get(name, name),
        shape,
        dtype,
        np.array(scales, np.float32),
        np.array(zero_points, np.int64),
        0 if found is None else found.quantizedDimension,
        _content(model.buffers[tensor.buffer].data, shape, dtype),
        bool(tensor.isVariable),
    )


def _content(data: Any, shape: tuple[int, ...], dtype: str) -> Array | None:
    if data is None or not len(data) or dtype not in TYPES:
        return None
    return np.asarray(data, np.uint8).view(dtype).reshape(shape)


def _operator(
    model: Any, index: int, operator: Any, code: str, tensors: tuple[Tensor, ...]
) -> Operator:
    return Operator(
        index,
        code,
        model.operatorCodes[operator.opcodeIndex].version,
        tuple(tensors[i] if i >= 0 else None for i in _indices(operator.inputs)),
        tuple(tensors[i] for i in _indices(operator.outputs)),
        operator.builtinOptions,
    )


def _named(entries: Any) -> list[tuple[str, int]]:
    return [(_text(entry.name), int(entry.tensorIndex)) for entry in entries or ()]


def _indices(values: Any) -> tuple[int, ...]:
    return () if values is None else tuple(int(i) for i in values)


def _text(name: bytes | str | None) -> str:
    return name.decode() if isinstance(name, bytes) else name or ""
