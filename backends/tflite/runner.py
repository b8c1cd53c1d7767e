"""Runs TFLite files on LiteRT's CPU kernels: XNNPACK and the optimized ones, or the reference ones.

A file that fuseq wrote says how its values lie; they are taken and given here as the program has
them, channels first. Any other file is taken as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ai_edge_litert
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from fuseq.backend import Runner
from fuseq.backends.tflite.arrangement import in_program_order, stored_axes
from fuseq.backends.tflite.file import Array, packed, unpacked
from fuseq.backends.tflite.graph import Tensor, read_graph
from fuseq.errors import FuseqError, first_line
from fuseq.quant.grid import LIMITS, Grid
from fuseq.quiet import quiet_streams

_MOVES = frozenset(
    "RESHAPE TRANSPOSE CONCATENATION STRIDED_SLICE PAD PADV2 MIRROR_PAD DEPTH_TO_SPACE "
    "SPACE_TO_DEPTH MAX_POOL_2D RESIZE_NEAREST_NEIGHBOR QUANTIZE DEQUANTIZE".split()
)


class LiteRtRunner(Runner):
    """An interpreter on one file."""

    name = "tflite"

    def __init__(self, file: Path, *, reference: bool = False, threads: int = 1) -> None:
        """Load a file.

        Args:
            file: a TFLite model.
            reference: run the reference kernels instead of XNNPACK and the optimized ones.
            threads: of the interpreter.

        Raises:
            FuseqError: FQ013 if the runtime cannot load it.
        """
        kernels = "reference kernels" if reference else "XNNPACK"
        self.runtime = f"LiteRT {ai_edge_litert.__version__} {kernels}"
        self.note = ""
        self._file, self._reference, self._threads = file, reference, threads
        self._data = file.read_bytes()
        self._interpreter = self._load(self._data)
        self._graph = read_graph(self._data)
        self._shown: Any = None
        inputs = self._interpreter.get_input_details()
        self.shapes = tuple(self._open_shape(spec) for spec in inputs)
        self.dtypes = tuple(np.dtype(spec["dtype"]).name for spec in inputs)
        self.output_names = self._named_outputs()
        self.says_layout = "layout" in self._graph.metadata
        self.quantized = any(tensor.quantized for tensor in self._graph.tensors)

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Outputs for inputs, channels first."""
        specs = self._interpreter.get_output_details()
        values = self._run(self._interpreter, inputs, [spec["index"] for spec in specs])
        return tuple(self._outward(value) for value in values)

    def ready(self, *inputs: np.ndarray) -> Callable[[], object]:
        """A call that invokes the interpreter; the inputs are in its memory."""
        self(*inputs)
        invoke: Callable[[], object] = self._interpreter.invoke
        return invoke

    def integers(self, *inputs: np.ndarray) -> Mapping[str, np.ndarray]:
        """Integers of every value of the program that is on a grid, by its name."""
        return self._values(inputs, lambda tensor: tensor.quantized)

    def reals(self, *inputs: np.ndarray) -> Mapping[str, np.ndarray]:
        """Values of the program that are floats in the file, by name."""
        return self._values(inputs, lambda tensor: tensor.dtype == "float32")

    def _values(
        self, inputs: Sequence[np.ndarray], chosen: Callable[[Tensor], bool]
    ) -> dict[str, np.ndarray]:
        tensors = self._graph.tensors
        indices = {tensor.name: tensor.index for tensor in tensors}
        wanted = {name: indices[t] for name, t in self._graph.metadata.get("values", {}).items()}
        if self._shown is None:
            self._shown = self._load(_with_outputs(self._data, sorted(set(wanted.values()))))
        order = sorted({index for index in wanted.values() if chosen(tensors[index])})
        values = dict(zip(order, self._run(self._shown, inputs, order), strict=True))
        return {name: self._value(name, values[i]) for name, i in wanted.items() if i in values}

    def parameters(self) -> Mapping[str, np.ndarray]:
        """Scales, zero points and integers in the file, by the names of the table."""
        tensors = {tensor.name: tensor for tensor in self._graph.tensors}
        found: dict[str, np.ndarray] = {}
        for name, stored in self._graph.metadata.get("values", {}).items():
            if tensors[stored].quantized:
                found |= _grid(name, tensors[stored])
        for name, how in self._graph.metadata.get("constants", {}).items():
            tensor = tensors[name]
            if not tensor.quantized or tensor.content is None:
                continue
            is_operand = "shape" in how
            found |= _grid(name, tensor, None if is_operand else how.get("output_block", 0))
            found[name] = _restored(tensor.content, how)
        return found

    def grids(self) -> tuple[tuple[Grid | None, ...], tuple[Grid | None, ...]]:
        """As the tensors say."""
        sides = (self._interpreter.get_input_details(), self._interpreter.get_output_details())
        return tuple(_grid_of(spec) for spec in sides[0]), tuple(_grid_of(s) for s in sides[1])

    def float_ops(self) -> Mapping[str, int]:
        """Operators on floats, with their number; what only moves values does not count."""
        found = Counter(
            operator.code
            for operator in self._graph.operators
            if operator.code not in _MOVES
            and any(tensor.dtype == "float32" for tensor in operator.outputs)
        )
        return dict(sorted(found.items()))

    # --- the interpreter ---

    def _load(self, data: bytes) -> Any:
        resolver = OpResolverType.BUILTIN_REF if self._reference else OpResolverType.AUTO
        try:
            with quiet_streams(2):
                interpreter = Interpreter(
                    model_content=data,
                    experimental_op_resolver_type=resolver,
                    num_threads=self._threads,
                )
                interpreter.allocate_tensors()
        except Exception as error:
            raise FuseqError(
                "FQ013",
                f"LiteRT cannot load {self._file.name}: {first_line(error)}",
                where=self._file.name,
                fix="is it a TFLite file, and written by this version?",
            ) from error
        return interpreter

    def _run(
        self, interpreter: Any, inputs: Sequence[np.ndarray], wanted: Sequence[int]
    ) -> list[np.ndarray]:
        specs = interpreter.get_input_details()
        arrays = [self._inward(x) for x in inputs]
        with quiet_streams(2):
            for spec, x in zip(specs, arrays, strict=True):
                if tuple(spec["shape"]) != x.shape:
                    interpreter.resize_tensor_input(spec["index"], x.shape)
            interpreter.allocate_tensors()
            for spec, x in zip(specs, arrays, strict=True):
                interpreter.set_tensor(spec["index"], x)
            interpreter.invoke()
        return [interpreter.get_tensor(index) for index in wanted]

    def _named_outputs(self) -> tuple[str, ...]:
        """Names of the outputs in the interpreter's order, where a signature has them."""
        names = {index: name for _, outputs in self._graph.signatures for name, index in outputs}
        known = all(index in names for index in self._graph.outputs)
        return tuple(names[index] for index in self._graph.outputs) if known else ()

    # --- how values lie ---

    def _open_shape(self, spec: Mapping[str, Any]) -> tuple[int | None, ...]:
        sizes = spec["shape_signature"] if len(spec["shape_signature"]) else spec["shape"]
        stored = [None if size < 0 else int(size) for size in sizes]
        if not self._channels_last(len(stored)):
            return tuple(stored)
        return tuple(stored[stored_axes(len(stored)).index(d)] for d in range(len(stored)))

    def _channels_last(self, rank: int) -> bool:
        return self._graph.metadata.get("layout") == "nhwc" and rank >= 4

    def _inward(self, x: np.ndarray) -> np.ndarray:
        return x.transpose(stored_axes(x.ndim)) if self._channels_last(x.ndim) else x

    def _outward(self, y: np.ndarray) -> np.ndarray:
        return in_program_order(y, stored_axes(y.ndim)) if self._channels_last(y.ndim) else y

    def _value(self, name: str, array: np.ndarray) -> np.ndarray:
        block = self._graph.metadata["block_order"].get(name, 0)
        return in_program_order(array, stored_axes(array.ndim), block, axis=1)


def _with_outputs(data: bytes, indices: Sequence[int]) -> bytes:
    """The same model, with further tensors among its outputs."""
    model = unpacked(data)
    graph = model.subgraphs[0]
    inputs = set(graph.inputs)
    graph.outputs = [i for i in indices if i not in inputs]
    model.signatureDefs = None
    return packed(model)


def _restored(array: Array, how: Mapping[str, Any]) -> Array:
    """A constant as the program has it."""
    outputs = how.get("output_axis", 0)
    array = in_program_order(array, how["axes"], how.get("output_block", 0), outputs)
    if "input_block" in how:
        array = in_program_order(array, range(array.ndim), how["input_block"], 1 - outputs)
    return array.reshape(how["shape"]) if "shape" in how else array


def _grid(name: str, tensor: Tensor, block: int | None = None) -> dict[str, Array]:
    """Scale and zero point, 0-d; of each channel, in the program's order, with a `block`."""
    scale, zero_point = tensor.scales, tensor.zero_points.astype(np.int32)
    if block is None:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    elif block:
        scale, zero_point = (in_program_order(x, (0,), block) for x in (scale, zero_point))
    return {f"{name}.scale": scale, f"{name}.zero_point": zero_point}


def _grid_of(spec: Mapping[str, Any]) -> Grid | None:
    parameters, dtype = spec["quantization_parameters"], np.dtype(spec["dtype"]).name
    if len(parameters["scales"]) != 1 or dtype not in LIMITS:
        return None
    scale, zero_point = (torch.tensor(parameters[key][0]) for key in ("scales", "zero_points"))
    return Grid(scale, zero_point, dtype)
