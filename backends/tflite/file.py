"""A TFLite file being built: tensors, operators and the table of op versions.

TFLite's FlatBuffer schema comes with `ai-edge-litert`. A kernel refuses an op whose version it does
not know, so every op is written in the lowest version that holds what is used of it. Arrays are as
the file stores them (channels last); who calls arranges them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
import numpy.typing as npt
from ai_edge_litert import schema_py_generated as schema

from fuseq.quant.grid import Grid

Array = npt.NDArray[Any]

METADATA = "fuseq"
"""Name of the file's metadata entry: JSON, what the names of tensors do not say."""

TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "int16": schema.TensorType.INT16,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
}

_OPERATORS = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}

VERSIONS: Mapping[str, Mapping[str, int]] = {
    "ABS": {"float32": 1},
    "ADD": {"float32": 1, "int8": 2, "int16": 3},
    "AVERAGE_POOL_2D": {"float32": 1, "int8": 2, "int16": 3},
    "BATCH_MATMUL": {"float32": 1, "int8": 2, "int16": 3},
    "CONCATENATION": {"float32": 1, "int8": 2, "int16": 3},
    "CONV_2D": {"float32": 1, "int8": 3, "int16": 4},
    "DEPTHWISE_CONV_2D": {"float32": 1, "int8": 3, "int16": 5},
    "DEPTH_TO_SPACE": {"float32": 1, "int8": 1},
    "DEQUANTIZE": {"int8": 2, "int16": 3, "uint8": 1},
    "DIV": {"float32": 1},
    "EXP": {"float32": 1},
    "FULLY_CONNECTED": {"float32": 1, "int8": 4, "int16": 7},
    "GELU": {"float32": 1, "int8": 2, "int16": 2},
    "HARD_SWISH": {"float32": 1, "int8": 1},
    "LEAKY_RELU": {"float32": 1, "int8": 1, "int16": 2},
    "LOG": {"float32": 1},
    "LOGISTIC": {"float32": 1, "int8": 2, "int16": 3},
    "MAXIMUM": {"float32": 1, "int8": 2, "int16": 4},
    "MAX_POOL_2D": {"float32": 1, "int8": 2, "int16": 3},
    "MEAN": {"float32": 1, "int8": 2, "int16": 3},
    "MINIMUM": {"float32": 1, "int8": 2, "int16": 4},
    "MIRROR_PAD": {"float32": 1, "int8": 2, "int16": 3},
    "MUL": {"float32": 1, "int8": 2, "int16": 4},
    "NEG": {"float32": 1},
    "PAD": {"float32": 1, "int8": 2, "int16": 3},
    "PADV2": {"float32": 1, "int8": 2, "int16": 3},
    "PRELU": {"float32": 1, "int8": 1},
    "QUANTIZE": {"float32": 1, "uint8": 1, "int8": 1, "int16": 1},
    "RELU": {"float32": 1, "int8": 2, "int16": 3},
    "RELU6": {"float32": 1, "int8": 2, "int16": 3},
    "RESHAPE": {"float32": 1, "uint8": 1, "int8": 1, "int16": 1},
    "RESIZE_BILINEAR": {"float32": 1, "int8": 2, "int16": 4},
    "RESIZE_NEAREST_NEIGHBOR": {"float32": 1, "int8": 2, "int16": 4},
    "RSQRT": {"float32": 1, "int8": 2, "int16": 3},
    "SOFTMAX": {"float32": 1, "int8": 2, "int16": 3},
    "SPACE_TO_DEPTH": {"float32": 1, "int8": 2},
    "SQRT": {"float32": 1},
    "STRIDED_SLICE": {"float32": 1, "int8": 2, "int16": 1},
    "SUB": {"float32": 1, "int8": 2, "int16": 5},
    "TANH": {"float32": 1, "int8": 2, "int16": 3},
    "TRANSPOSE": {"float32": 1, "uint8": 1, "int8": 2, "int16": 5},
    "TRANSPOSE_CONV": {"float32": 3, "int8": 3, "int16": 4},
}
"""Op -> dtype of its first operand -> the lowest version that has it."""


def version_of_form(
    code: str,
    shapes: Sequence[Sequence[int]],
    scales: Sequence[float],
    result: str,
    options: Any,
) -> int:
    """Lowest version that has what is used of an operator beyond a dtype.

    Args:
        code: key of `VERSIONS`.
        shapes: of its operands that are values.
        scales: of these and of the result, those that have one.
        result: its dtype.
        options: table of the schema's object API, or None.
    """

    def option(name: str) -> Any:
        return getattr(options, name, 0)

    rank = len(shapes[0])
    broadcasts = rank > 4 and len({tuple(shape) for shape in shapes}) > 1
    if option("quantizedBiasType"):
        return {"FULLY_CONNECTED": 11, "CONV_2D": 8, "TRANSPOSE_CONV": 5}[code]
    match code:
        case "CONV_2D" if shapes[0][-1] != shapes[1][-1]:  # groups
            return 6
        case "DEPTHWISE_CONV_2D" if max(option("dilationHFactor"), option("dilationWFactor")) > 1:
            return 2
        case "FULLY_CONNECTED" if option("keepNumDims"):
            return 5
        case "TRANSPOSE" if rank > 4:
            return {5: 4, 6: 6}.get(rank, 8)
        case "PAD" | "PADV2" | "STRIDED_SLICE" if rank > 4:
            return 4
        case "QUANTIZE" if result == "int16":
            return 2
        case "RESIZE_BILINEAR" if option("halfPixelCenters"):
            return 3
        case "RESIZE_NEAREST_NEIGHBOR" if option("halfPixelCenters") or option("alignCorners"):
            return 3
        case "MUL" if len(scales) == 3 and scales[0] * scales[1] >= scales[2]:
            return 3
        case "MAXIMUM" | "MINIMUM" | "SUB" if broadcasts:
            return 3
        case "DIV" if broadcasts:
            return 2
    return 1


class File:
    """Tensors and operators of one graph, in the order they were added."""

    def __init__(self) -> None:
        """Start an empty graph.

        `dtypes`, `grids` and `shapes` hold those of each tensor, as stored, by its index; `pads`
        the padded form of a tensor, by what was padded how; `is_open` whether the caller may change
        a size, so that sizes of images must not be in the file.
        """
        self.is_open = False
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators, self.graph.name = [], [], "main"
        self.codes: list[Any] = []
        self.buffers: list[Any] = [_buffer(b"")]  # buffer 0 is empty by the schema's convention
        self.dtypes: list[str] = []
        self.grids: list[Grid | None] = []
        self.shapes: list[tuple[int, ...]] = []
        self.pads: dict[tuple[Any, ...], int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], int] = {}
        self._taken: set[str] = set()

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str,
        grid: Grid | None = None,
        *,
        free: Sequence[int] = (),
    ) -> int:
        """Add a tensor that an operator or the caller fills.

        Args:
            name: made unique if it is taken.
            shape: as stored.
            dtype: key of `TYPES`.
            grid: its quantization.
            free: dimensions whose size the caller may change.

        Returns:
            Its index.
        """
        tensor = schema.TensorT()
        tensor.name, count = name, 1
        while tensor.name in self._taken:
            tensor.name, count = f"{name}_{count}", count + 1
        self._taken.add(tensor.name)
        tensor.shape, tensor.type, tensor.buffer = list(shape), TYPES[dtype], 0
        if free:
            self.is_open = True
            tensor.shapeSignature = [-1 if d in free else size for d, size in enumerate(shape)]
        tensor.quantization = schema.QuantizationParametersT()
        if grid is not None:
            tensor.quantization.scale = grid.scale.reshape(-1).tolist()
            tensor.quantization.zeroPoint = grid.zero_point.reshape(-1).tolist()
            tensor.quantization.quantizedDimension = grid.axis or 0
        self.graph.tensors.append(tensor)
        self.dtypes.append(dtype)
        self.grids.append(grid)
        self.shapes.append(tuple(shape))
        return len(self.graph.tensors) - 1

    def like(self, index: int, name: str, shape: Sequence[int]) -> int:
        """Add a tensor with the dtype and the grid of another, and a shape of its own."""
        return self.tensor(name, shape, self.dtypes[index], self.grids[index])

    def constant(self, name: str, array: Array, grid: Grid | None = None) -> int:
        """Add a tensor with content; `grid.axis` is a dimension of the array as stored."""
        index = self.tensor(name, array.shape, str(array.dtype), grid)
        self.buffers.append(_buffer(np.ascontiguousarray(array).tobytes()))
        self.graph.tensors[index].buffer = len(self.buffers) - 1
        return index

    def name(self, index: int) -> str:
        """Name of a tensor."""
        name: str = self.graph.tensors[index].name
        return name

    def integers(self, *values: int | Sequence[int]) -> int:
        """An int32 constant (paddings, axes, sizes); equal ones are one tensor."""
        array = np.array(values, np.int32)
        key = ("int32", array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.constant(f"sizes_{len(self._constants)}", array)
        return self._constants[key]

    def op(
        self,
        code: str,
        inputs: Sequence[int],
        output: int,
        options: str = "",
        version: int | None = None,
        **fields: Any,
    ) -> int:
        """Add an operator.

        Args:
            code: key of `VERSIONS`.
            inputs: tensor indices.
            output: tensor index.
            options: name of its options table in the schema, without "Options".
            version: instead of the lowest that has what is used.
            **fields: of the options, spelled as the schema's object API does.

        Returns:
            `output`.
        """
        operator = schema.OperatorT()
        operator.inputs, operator.outputs = list(inputs), [output]
        if options:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, f"{options}Options")
            operator.builtinOptions = getattr(schema, f"{options}OptionsT")()
            for name, value in fields.items():
                if not hasattr(operator.builtinOptions, name):
                    raise AttributeError(f"{options}Options has no field '{name}'")
                setattr(operator.builtinOptions, name, value)
        version = version or self._version(code, inputs, output, operator.builtinOptions)
        operator.opcodeIndex = self._code(getattr(schema.BuiltinOperator, code), version)
        self.graph.operators.append(operator)
        return output

    def serialized(
        self, inputs: Mapping[str, int], outputs: Mapping[str, int], metadata: Mapping[str, Any]
    ) -> bytes:
        """The file.

        Args:
            inputs: name in the signature -> tensor, in the order of the interface.
            outputs: the same.
            metadata: JSON that stays in the file.
        """
        self.graph.inputs, self.graph.outputs = list(inputs.values()), list(outputs.values())
        model = schema.ModelT()
        model.version, model.description = 3, "fuseq"
        model.subgraphs, model.operatorCodes = [self.graph], self.codes
        model.signatureDefs = [_signature(inputs, outputs)]
        content = json.dumps(metadata, sort_keys=True).encode()
        entry = schema.MetadataT()
        entry.name, entry.buffer = METADATA, len(self.buffers)
        model.metadata, model.buffers = [entry], [*self.buffers, _buffer(content)]
        return packed(model)

    def _version(self, code: str, inputs: Sequence[int], output: int, options: Any) -> int:
        shapes = [self.shapes[i] for i in inputs]
        grids = [self.grids[i] for i in (*inputs, output)]
        scales = [float(g.scale) for g in grids if g is not None and g.axis is None]
        form = version_of_form(code, shapes, scales, self.dtypes[output], options)
        return max(VERSIONS[code][self.dtypes[inputs[0]]], form)

    def _code(self, builtin: int, version: int) -> int:
        for index, code in enumerate(self.codes):
            if (code.builtinCode, code.version) == (builtin, version):
                return index
        code = schema.OperatorCodeT()
        code.builtinCode, code.version = builtin, version
        code.deprecatedBuiltinCode = min(builtin, 127)
        self.codes.append(code)
        return len(self.codes) - 1


def packed(model: Any) -> bytes:
    """Bytes of a model of the schema's object API."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def unpacked(data: bytes) -> Any:
    """A model of the schema's object API, from bytes."""
    return schema.ModelT.InitFromPackedBuf(data, 0)


def operators(model: Any) -> list[str]:
    """Names of the operators of an unpacked model, in order."""
    # Files of old have the code in the field that has been deprecated since.
    numbers = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    codes = [_OPERATORS[number] for number in numbers]
    return [codes[operator.opcodeIndex] for operator in model.subgraphs[0].operators]


def metadata_of(model: Any) -> dict[str, Any]:
    """What `File.serialized` was told; empty for a file that somebody else wrote."""
    for entry in model.metadata or ():
        if entry.name == METADATA.encode():
            found: dict[str, Any] = json.loads(bytes(model.buffers[entry.buffer].data))
            return found
    return {}


def _buffer(data: bytes) -> Any:
    buffer = schema.BufferT()
    # As an array, since a list of bytes is written one by one.
    buffer.data = np.frombuffer(data, np.uint8) if data else None
    return buffer


def _signature(inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    signature.inputs, signature.outputs = (
        [_named(name, index) for name, index in side.items()] for side in (inputs, outputs)
    )
    return signature


def _named(name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry
