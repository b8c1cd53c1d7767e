"""What is written without any tool of Qualcomm's: two ONNX files and the encodings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from fuseq.backend import Artifact
from fuseq.backends.qnn.encodings import encodings_v0, encodings_v1, encodings_v2, tensor_grids
from fuseq.backends.qnn.spellings import CENTERED, SPELLINGS, ignored_grid
from fuseq.program import Program
from fuseq.qdq.emit import to_onnx
from fuseq.qdq.graph import serialized

QDQ = "model.qdq.onnx"
OPSET = 21
"""The first with 16 bits and opset-native quantizers, which HTP's compiler takes."""


def write_files(program: Program, out: Path, *, integer_io: bool, layout: str) -> list[Artifact]:
    """Write every file of a program.

    Args:
        program: at fixed sizes, float or quantized.
        out: an existing directory.
        integer_io: whether the QDQ file takes and gives integers.
        layout: "nhwc" or "nchw".
    """
    options: dict[str, Any] = {
        "opset": OPSET,
        "dynamic": False,
        "channels_last": layout == "nhwc",
    }
    plain = program.clone()
    plain.quantization = None
    model = to_onnx(plain, name="float", integer_io=False, **options)
    (out / "model.float.onnx").write_bytes(serialized(model))
    files = [Artifact("model.float.onnx", "float")]
    if program.quantization is None:
        return files
    quantized = to_onnx(
        program,
        name="quantized",
        integer_io=integer_io,
        rules=SPELLINGS,
        inner=ignored_grid,
        **options,
    )
    _name_outputs(quantized)
    _drop_unread(quantized)
    _center_pointwise(quantized)
    (out / QDQ).write_bytes(serialized(quantized))
    files.append(Artifact(QDQ, "int8"))
    values, parameters = tensor_grids(program, model)
    contents: Mapping[str, Any] = {
        "encodings.v2.json": encodings_v2(values, parameters),
        "encodings.v1.json": encodings_v1(values, parameters),
        "encodings.v0.json": encodings_v0(values, parameters, program.quantization.profile),
    }
    for path, content in contents.items():
        (out / path).write_text(json.dumps(content, indent=1) + "\n")
    return [*files, *(Artifact(path, "encodings") for path in contents)]


def _name_outputs(model: onnx.ModelProto) -> None:
    """Give values the names of the outputs they are, in place: HTP has no Identity."""
    outputs = {value.name for value in model.graph.output}
    renamed: dict[str, str] = {}
    for item in list(model.graph.node):
        source = item.input[0] if item.input else ""
        made = any(source in maker.output for maker in model.graph.node)
        if item.op_type == "Identity" and made and not {source} & (outputs | renamed.keys()):
            renamed[source] = item.output[0]
            model.graph.node.remove(item)
    for item in model.graph.node:
        item.input[:] = [renamed.get(name, name) for name in item.input]
        item.output[:] = [renamed.get(name, name) for name in item.output]


def _drop_unread(model: onnx.ModelProto) -> None:
    """Take out what nothing reads, in place: HTP would compute the reals of integer outputs."""
    read = {value.name for value in model.graph.output}
    for item in reversed(list(model.graph.node)):
        if read.isdisjoint(item.output):
            model.graph.node.remove(item)
        else:
            read.update(item.input)
    for tensor in [t for t in model.graph.initializer if t.name not in read]:
        model.graph.initializer.remove(tensor)


def _center_pointwise(model: onnx.ModelProto) -> None:
    """Write depthwise 1x1 convolutions as 3x3 ones with zeros around, in place.

    v68 and v69 do not compile the former where its result is an output.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {item.output[0]: item for item in model.graph.node}
    for item in model.graph.node:
        if item.op_type != "Conv" or makers[item.input[1]].op_type != "DequantizeLinear":
            continue
        weight = constants[makers[item.input[1]].input[0]]
        attributes = {a.name: a for a in item.attribute}
        if list(weight.dims[1:]) != [1, 1, 1] or attributes["group"].i != weight.dims[0]:
            continue
        integers = numpy_helper.to_array(weight)
        around = np.pad(integers, ((0, 0), (0, 0), (1, 1), (1, 1)))
        weight.CopyFrom(numpy_helper.from_array(around, weight.name + CENTERED))
        makers[item.input[1]].input[0] = weight.name
        attributes["pads"].ints[:] = [n + 1 for n in attributes["pads"].ints]
        attributes["kernel_shape"].ints[:] = [3, 3]
