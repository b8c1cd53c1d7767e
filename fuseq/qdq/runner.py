"""Runs a QDQ file on ONNX Runtime's CPU, and tells its integers and its parameters.

A file whose images lie channels last says so in its metadata; they are taken and given here as the
program has them, channels first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper

from fuseq.backend import Runner
from fuseq.errors import FuseqError, first_line
from fuseq.qdq.layout import FORMAT, Layout
from fuseq.quant.grid import LIMITS, Grid

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


_KEEPS_GRID = ("Identity", "Transpose", "Reshape")
_INTEGERS = ".quantized"
"""How names of the outputs of quantizers end."""


class QdqRunner(Runner):
    """A session on one file."""

    name = "onnx"

    def __init__(
        self,
        file: Path,
        options: onnxruntime.SessionOptions,
        note: str = "",
        edit: Callable[[onnx.ModelProto], None] | None = None,
    ) -> None:
        """Load a file.

        Args:
            file: an ONNX model.
            options: of the session.
            note: what a reader must know about this runtime or host.
            edit: makes of the file what is run in its place.

        Raises:
            FuseqError: FQ013 if the runtime cannot load it.
        """
        self.runtime = f"onnxruntime {onnxruntime.__version__} CPU"
        self.note = note
        self.file, self.options, self._edit = file, options, edit
        self._session = self._load(self._model().SerializeToString() if edit else file.read_bytes())
        self._exposed: onnxruntime.InferenceSession | None = None
        notes = self._session.get_modelmeta().custom_metadata_map
        self._layout, self.says_layout = Layout.said_by(notes), FORMAT in notes
        self.output_names = tuple(spec.name for spec in self._session.get_outputs())
        self.shapes = tuple(self._open_shape(spec.shape) for spec in self._session.get_inputs())
        self.dtypes = tuple(self._dtype(spec.type) for spec in self._session.get_inputs())
        self.quantized = any(n.op_type == "QuantizeLinear" for n in self._model().graph.node)

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Outputs for inputs."""
        return tuple(self._layout.outward(y) for y in self._session.run(None, self._feeds(inputs)))

    def ready(self, *inputs: np.ndarray) -> Callable[[], object]:
        """A call that runs the session on inputs that lie as the file wants them."""
        feeds = {name: np.ascontiguousarray(x) for name, x in self._feeds(inputs).items()}
        return lambda: self._session.run(None, feeds)

    def integers(self, *inputs: np.ndarray) -> Mapping[str, np.ndarray]:
        """Integers of every quantized value, by value name (its quantizer's output is exposed)."""
        if self._exposed is None:
            self._exposed = self._load(with_integers(self._model()).SerializeToString())
        names = [o.name for o in self._exposed.get_outputs() if o.name.endswith(_INTEGERS)]
        # Asked for no output, the runtime gives all.
        return by_value(names, self._exposed.run(names, self._feeds(inputs)) if names else [])

    def reals(self, *inputs: np.ndarray) -> Mapping[str, np.ndarray]:
        """Every float32 tensor that is the first result of a node, by its name."""
        model = onnx.shape_inference.infer_shapes(self._model())
        given = {value.name for value in (*model.graph.output, *model.graph.input)}
        made = {node.output[0] for node in model.graph.node} - given
        found = [
            value
            for value in model.graph.value_info
            if value.name in made and value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        ]
        model.graph.output.extend(found)
        names = [value.name for value in found]
        session = self._load(model.SerializeToString())
        values = session.run(names, self._feeds(inputs)) if names else []
        return dict(zip(names, values, strict=True))

    def grids(self) -> tuple[tuple[Grid | None, ...], tuple[Grid | None, ...]]:
        """Of integer inputs that only a DequantizeLinear reads, and of outputs of quantizers."""
        graph = self._model().graph
        constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        moves = {n.output[0]: n.input[0] for n in graph.node if n.op_type in _KEEPS_GRID}
        found: dict[str, Grid] = {}
        for node in graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                name = (node.output if node.op_type == "QuantizeLinear" else node.input)[0]
                while name in moves and node.op_type == "DequantizeLinear":
                    name = moves[name]
                scale, zero_point = (constants[n] for n in node.input[1:3])
                if scale.ndim == 0:
                    parts = torch.tensor(scale), torch.tensor(zero_point.astype(np.int32))
                    found[name] = Grid(*parts, str(zero_point.dtype))

        def grid_of(name: str, dtype: str) -> Grid | None:
            while name not in found and name in moves:
                name = moves[name]
            return found.get(name) if _DTYPES.get(dtype) in LIMITS else None

        sides = (self._session.get_inputs(), self._session.get_outputs())
        inputs, outputs = (tuple(grid_of(s.name, s.type) for s in side) for side in sides)
        return inputs, outputs

    def parameters(self) -> Mapping[str, np.ndarray]:
        """Scales, zero points and integers of every DequantizeLinear, by value name."""
        graph = self._model().graph
        constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        found: dict[str, np.ndarray] = {}
        for node in graph.node:
            if node.op_type == "DequantizeLinear":
                name = node.name.removesuffix(".dequantized")
                found[f"{name}.scale"] = constants[node.input[1]]
                found[f"{name}.zero_point"] = constants[node.input[2]]
                if node.input[0] in constants:
                    found[name] = constants[node.input[0]]
            if node.op_type == "QuantizeLinear":
                name = node.name.removesuffix(_INTEGERS)
                found[f"{name}.quantizer.scale"] = constants[node.input[1]]
                found[f"{name}.quantizer.zero_point"] = constants[node.input[2]]
        return found

    def _model(self) -> onnx.ModelProto:
        try:
            model = onnx.load(str(self.file))
        except DecodeError as error:
            raise FuseqError(
                "FQ013", f"'{self.file.name}' is no ONNX file: {error}", fix="write it again"
            ) from error
        if self._edit:
            self._edit(model)
        return model

    def _load(self, model: bytes) -> onnxruntime.InferenceSession:
        try:
            return onnxruntime.InferenceSession(
                model, self.options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            compiled = "EPContext" in str(error)
            raise FuseqError(
                "FQ013",
                f"ONNX Runtime cannot load {self.file.name}: {first_line(error)}",
                where=str(self.file.name),
                fix="it is compiled for a device: here the file it was compiled from runs"
                if compiled
                else "is it an ONNX file, and written by this version?",
            ) from error

    def _dtype(self, spelled: str) -> str:
        if spelled not in _DTYPES:
            raise FuseqError(
                "FQ013",
                f"'{self.file.name}' has an input of {spelled}",
                why=f"known are {', '.join(_DTYPES)}",
                fix="cut the graph behind what reads it",
            )
        return _DTYPES[spelled]

    def _feeds(self, inputs: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
        specs = self._session.get_inputs()
        return {spec.name: self._layout.inward(x) for spec, x in zip(specs, inputs, strict=True)}

    def _open_shape(self, shape: Sequence[int | str]) -> tuple[int | None, ...]:
        return self._layout.shape([size if isinstance(size, int) else None for size in shape])


def with_integers(model: onnx.ModelProto, but: str = "") -> onnx.ModelProto:
    """A model with the output of every quantizer among its outputs; edits what it is given.

    Args:
        model: QDQ.
        but: leaves out quantizers whose names contain this, if it is given.
    """
    already = {value.name for value in (*model.graph.output, *model.graph.input)}
    zero_points = {t.name: t.data_type for t in model.graph.initializer}
    for node in model.graph.node:
        name = node.output[0]
        left_out = name in already or (but and but in name)
        if node.op_type == "QuantizeLinear" and not left_out:
            dtype = zero_points[node.input[2]]
            model.graph.output.append(helper.make_tensor_value_info(name, dtype, None))
    return model


def by_value(names: Iterable[str], arrays: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Integers among the outputs of a model `with_integers`, by the names of their values."""
    return {
        name.removesuffix(_INTEGERS): array
        for name, array in zip(names, arrays, strict=True)
        if name.endswith(_INTEGERS)
    }
