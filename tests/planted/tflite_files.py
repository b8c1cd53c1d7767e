"""Int8 TFLite files of small networks, opened for edits with the schema's own object API."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor, nn

import fuseq
from fuseq.backends.tflite.file import METADATA, TYPES, packed, unpacked
from fuseq.program import Program


class Moves(nn.Module):
    """Operators that no network of tests/networks has."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(12, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.wide = nn.Conv2d(8, 6, (1, 3), padding=(0, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.down(F.pixel_unshuffle(x, 2))
        y = F.leaky_relu(self.grouped(F.pad(y, (1, 1, 1, 1), mode="reflect")), 0.1)
        y = self.wide(F.interpolate(F.avg_pool2d(y, 2), scale_factor=2.0, mode="bilinear"))
        return torch.softmax(y, 1), y.clamp(0.02, 0.15), y.clamp(-0.15, -0.02)


@dataclass(frozen=True)
class Lowered:
    """A network, quantized and written."""

    program: Program
    data: bytes
    inputs: tuple[Tensor, ...]


@cache
def lowered(name: str) -> Lowered:
    """`Moves`, or a network of tests/networks by its module."""
    torch.manual_seed(0)
    module = importlib.import_module(f"tests.networks.{name}") if name != "moves" else None
    network = module.small() if module else Moves()
    batches = [torch.rand(1, 3, 64, 64) for _ in range(2)]
    with TemporaryDirectory() as folder:
        bundle = fuseq.lower(
            network,
            batches[0],
            backend="tflite",
            calibration=batches,
            out=Path(folder) / "bundle",
            check=False,
        )
        file = bundle.file("int8")
        assert file is not None
        assert bundle.program is not None
        return Lowered(bundle.program, file.read_bytes(), (batches[0],))


class Edited:
    """A file, opened; operators and tensors are found by the names of values."""

    def __init__(self, data: bytes) -> None:
        self.model = unpacked(data)
        self.graph = self.model.subgraphs[0]
        self.names = [tensor.name.decode() for tensor in self.graph.tensors]
        self.graph.inputs, self.graph.outputs = list(self.graph.inputs), list(self.graph.outputs)
        for operator in self.graph.operators:
            operator.inputs, operator.outputs = list(operator.inputs), list(operator.outputs)

    def data(self) -> bytes:
        return packed(self.model)

    def index(self, name: str) -> int:
        return self.names.index(name)

    def tensor(self, name: str) -> Any:
        return self.graph.tensors[self.index(name)]

    def operator(self, result: str) -> Any:
        """The operator that writes a tensor."""
        (found,) = [o for o in self.graph.operators if self.index(result) in o.outputs]
        return found

    def position(self, result: str) -> int:
        return self.graph.operators.index(self.operator(result))

    def options(self, result: str, **fields: Any) -> None:
        for name, value in fields.items():
            assert getattr(self.operator(result).builtinOptions, name) != value
            setattr(self.operator(result).builtinOptions, name, value)

    def version(self, result: str, version: int) -> None:
        operator = self.operator(result)
        code = self.model.operatorCodes[operator.opcodeIndex]
        changed = schema.OperatorCodeT()
        changed.builtinCode, changed.version = code.builtinCode, version
        changed.deprecatedBuiltinCode = code.deprecatedBuiltinCode
        self.model.operatorCodes.append(changed)
        operator.opcodeIndex = len(self.model.operatorCodes) - 1

    def scale(self, name: str, edit: Callable[[np.ndarray], Any]) -> None:
        found = self.tensor(name).quantization
        found.scale = np.atleast_1d(np.asarray(edit(np.array(found.scale, np.float32)), np.float32))

    def zero_point(self, name: str, value: int) -> None:
        found = self.tensor(name).quantization
        found.zeroPoint = np.full_like(found.zeroPoint, value)

    def constant(self, name: str, edit: Callable[[np.ndarray], np.ndarray]) -> None:
        """Edit the content of a constant, in place."""
        tensor = self.tensor(name)
        dtype = next(name for name, kind in TYPES.items() if kind == tensor.type)
        buffer = self.model.buffers[tensor.buffer]
        before = np.asarray(buffer.data, np.uint8).view(dtype).reshape(tensor.shape)
        after = np.ascontiguousarray(edit(before.copy()))
        assert not np.array_equal(before, after)
        tensor.shape = list(after.shape)
        buffer.data = np.frombuffer(after.tobytes(), np.uint8)

    def sizes(self, result: str, position: int, values: Any) -> None:
        """Give one operator other sizes, axes or paddings than it shares with others."""
        tensor = schema.TensorT()
        array = np.array(values, np.int32)
        tensor.name, tensor.shape, tensor.type = "planted", list(array.shape), TYPES["int32"]
        tensor.quantization, tensor.buffer = None, len(self.model.buffers)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(array.tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        self.graph.tensors.append(tensor)
        self.operator(result).inputs[position] = len(self.graph.tensors) - 1

    def reads(self, result: str, *operands: str) -> None:
        """Let an operator read other values."""
        indices = [self.index(name) for name in operands]
        self.operator(result).inputs[: len(operands)] = indices

    def remove(self, result: str) -> None:
        self.graph.operators.remove(self.operator(result))

    def metadata(self, edit: Callable[[dict[str, Any]], None]) -> None:
        (entry,) = [entry for entry in self.model.metadata if entry.name == METADATA.encode()]
        buffer = self.model.buffers[entry.buffer]
        content: dict[str, Any] = json.loads(bytes(buffer.data))
        edit(content)
        buffer.data = np.frombuffer(json.dumps(content).encode(), np.uint8)


Edit = Callable[[Edited], object]


def signature(edited: Edited) -> Any:
    (found,) = edited.model.signatureDefs
    return found


def first_is(value: int) -> Callable[[np.ndarray], np.ndarray]:
    def edit(array: np.ndarray) -> np.ndarray:
        array.flat[0] = value
        return array

    return edit


def one_unit_more(scales: np.ndarray) -> np.ndarray:
    """The next float32."""
    return np.nextafter(scales, np.float32(np.inf))


def transposed(*axes: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: array.transpose(axes)
