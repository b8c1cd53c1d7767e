"""Wrong TFLite files that break a rule of the format: the verifier names the op and the value.

LiteRT runs most of them. Each is a good file with one thing changed; what breaks no rule is in
`test_wrong_tflite_integers`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fuseq.backends.tflite.file import TYPES
from fuseq.backends.tflite.verifier import Violation, violations
from tests.planted.tflite_files import (
    Edit,
    Edited,
    first_is,
    lowered,
    one_unit_more,
    signature,
)

SAME_GRID = {
    "AVERAGE_POOL_2D": ("moves", "avg_pool"),
    "CONCATENATION": ("squeezenet", "concat"),
    "DEPTH_TO_SPACE": ("gated", "pixel_shuffle"),
    "MAXIMUM": ("moves", "clamp"),
    "MAX_POOL_2D": ("squeezenet", "max_pool"),
    "MINIMUM": ("moves", "clamp_1"),
    "MIRROR_PAD": ("moves", "pad"),
    "PAD": ("gated", "down1_a.padded"),
    "PADV2": ("shufflenet_v2", "max_pool.padded"),
    "RESHAPE": ("squeezenet", "reshape"),
    "RESIZE_BILINEAR": ("moves", "interpolate"),
    "RESIZE_NEAREST_NEIGHBOR": ("gated", "interpolate"),
    "SPACE_TO_DEPTH": ("moves", "pixel_unshuffle"),
    "STRIDED_SLICE": ("decoder", "relu_2"),
    "TRANSPOSE": ("shufflenet_v2", "permute"),
}


def found_in(edited: Edited, result: str) -> list[Violation]:
    """Violations of the operator that writes a tensor."""
    return [v for v in violations(edited.data()) if v.operator == edited.position(result)]


@pytest.mark.parametrize("code", list(SAME_GRID))
@pytest.mark.parametrize("part", ["scale", "zero point"])
def test_a_result_on_another_grid(code: str, part: str) -> None:
    network, result = SAME_GRID[code]
    edited = Edited(lowered(network).data)
    assert violations(edited.data()) == []
    if part == "scale":
        edited.scale(result, lambda scale: scale * 1.5)
    else:
        edited.zero_point(result, 3)
    found = found_in(edited, result)
    assert found
    assert {(v.code, v.rule) for v in found} == {(code, "grid of the result")}
    read = {edited.names[i] for i in edited.operator(result).inputs}
    assert {v.tensor for v in found} <= read


def set_type(edited: Edited, name: str, kind: int) -> None:
    edited.tensor(name).type = kind


def set_axis(edited: Edited, name: str, axis: int) -> None:
    edited.tensor(name).quantization.quantizedDimension = axis


def fewer_scales(edited: Edited, name: str) -> None:
    edited.scale(name, lambda scales: scales[:-1])
    found = edited.tensor(name).quantization
    found.zeroPoint = found.zeroPoint[:-1]


def two_scales(edited: Edited, name: str) -> None:
    edited.scale(name, lambda scales: np.repeat(scales, 2))
    found = edited.tensor(name).quantization
    found.zeroPoint = np.repeat(found.zeroPoint, 2)


def no_scale(edited: Edited, name: str) -> None:
    edited.tensor(name).quantization.scale = None
    edited.tensor(name).quantization.zeroPoint = None


GRID_FAULTS: dict[str, tuple[str, Edit, str, str, str]] = {
    "zero point of a tanh": (
        "gated", lambda e: e.zero_point("tanh", 1), "TANH", "tanh", "fixed grid",
    ),
    "scale of a sigmoid": (
        "gated", lambda e: e.scale("sigmoid", lambda s: s * 2), "LOGISTIC", "sigmoid", "fixed grid",
    ),
    "scale of a softmax": (
        "moves", lambda e: e.scale("softmax", lambda s: s * 256 / 255), "SOFTMAX", "softmax",
        "fixed grid",
    ),
    "zero points of weights": (
        "gated", lambda e: e.zero_point("head.weight", 1), "CONV_2D", "head.weight",
        "zero points of weights",
    ),
    "weights down to -128": (
        "gated", lambda e: e.constant("head.weight", first_is(-128)), "CONV_2D", "head.weight",
        "weights",
    ),
    "unsigned weights": (
        "gated", lambda e: set_type(e, "head.weight", TYPES["uint8"]), "CONV_2D", "head.weight",
        "dtype of weights",
    ),
    "scales along another dimension of a convolution": (
        "gated", lambda e: set_axis(e, "head.weight", 3), "CONV_2D", "head.weight",
        "dimension of the weights' scales",
    ),
    "scales along another dimension of a depthwise convolution": (
        "mobilenet_v3", lambda e: set_axis(e, "features_3_block_3.weight", 0),
        "DEPTHWISE_CONV_2D", "features_3_block_3.weight", "dimension of the weights' scales",
    ),
    "scales along another dimension of a transposed convolution": (
        "decoder", lambda e: set_axis(e, "decoder_0.weight", 3), "TRANSPOSE_CONV",
        "decoder_0.weight", "dimension of the weights' scales",
    ),
    "scales along another dimension of a linear layer": (
        "mobilenet_v3", lambda e: set_axis(e, "classifier.0.weight", 1), "FULLY_CONNECTED",
        "classifier.0.weight", "dimension of the weights' scales",
    ),
    "a scale too few": (
        "gated", lambda e: fewer_scales(e, "head.weight"), "CONV_2D", "head.weight",
        "scales of weights",
    ),
    "scales of a bias, by the last bit": (
        "gated", lambda e: e.scale("head.bias", one_unit_more), "CONV_2D", "head.bias",
        "scales of a bias are those of input times weights",
    ),
    "zero points of a bias": (
        "gated", lambda e: e.zero_point("head.bias", 1), "CONV_2D", "head.bias",
        "zero points of a bias",
    ),
    "dtype of a bias": (
        "gated", lambda e: set_type(e, "head.bias", TYPES["float32"]), "CONV_2D", "head.bias",
        "dtype of a bias",
    ),
    "a scale of zero": (
        "gated", lambda e: e.scale("mul", lambda s: s * 0), "MUL", "mul", "scale",
    ),
    "a scale that is no number": (
        "gated", lambda e: e.scale("mul", lambda s: s * np.nan), "MUL", "mul", "scale",
    ),
    "an infinite scale": (
        "gated", lambda e: e.scale("mul", lambda s: s * np.inf), "MUL", "mul", "scale",
    ),
    "no scale": (
        "gated", lambda e: no_scale(e, "mul"), "MUL", "mul", "scale",
    ),
    "two scales for one value": (
        "gated", lambda e: two_scales(e, "mul"), "MUL", "mul", "one scale per value",
    ),
    "a scale without its zero point": (
        "gated", lambda e: e.scale("mul", lambda s: np.repeat(s, 2)), "MUL", "mul",
        "a zero point per scale",
    ),
    "a zero point past the dtype": (
        "gated", lambda e: e.zero_point("mul", 200), "MUL", "mul", "zero point",
    ),
    "a result of another dtype": (
        "gated", lambda e: set_type(e, "mul", TYPES["uint8"]), "MUL", "mul", "one dtype",
    ),
    "a result of a convolution of another dtype": (
        "gated", lambda e: set_type(e, "head_1", TYPES["int16"]), "CONV_2D", "head_1", "one dtype",
    ),
    "16 bits with a zero point": (
        "gated", lambda e: set_type(e, "mul", TYPES["int16"]), "MUL", "mul", "zero point",
    ),
    "paddings that are floats": (
        "gated", lambda e: set_type(e, "sizes_0", TYPES["float32"]), "PAD", "sizes_0",
        "dtype of sizes",
    ),
    "a part of a concatenation on a grid of its own": (
        "squeezenet", lambda e: e.reads("concat", "relu_1"), "CONCATENATION", "relu_1",
        "grid of the result",
    ),
    "a second activation": (
        "squeezenet", lambda e: e.options("relu", fusedActivationFunction=1), "CONV_2D", "relu",
        "fused activation",
    ),
    "a version that the reference kernels lack": (
        "gated", lambda e: e.version("pixel_shuffle", 2), "DEPTH_TO_SPACE", "pixel_shuffle",
        "version",
    ),
    "the version of a float convolution": (
        "gated", lambda e: e.version("head_1", 1), "CONV_2D", "head_1", "version",
    ),
    "the version of a convolution without groups": (
        "moves", lambda e: e.version("grouped", 3), "CONV_2D", "grouped", "version",
    ),
    "the version of a linear layer with one scale": (
        "mobilenet_v3", lambda e: e.version("classifier_0", 4), "FULLY_CONNECTED", "classifier_0",
        "version",
    ),
    "the version of a transpose of four dimensions": (
        "shufflenet_v2", lambda e: e.version("permute", 2), "TRANSPOSE", "permute", "version",
    ),
    "the version of a resize without half pixels": (
        "moves", lambda e: e.version("interpolate", 2), "RESIZE_BILINEAR", "interpolate",
        "version",
    ),
    "a version that is not there yet": (
        "mobilenet_v3", lambda e: e.version("hardswish", 2), "HARD_SWISH", "hardswish", "version",
    ),
}  # fmt: skip


def run_last(edited: Edited, result: str) -> None:
    operator = edited.operator(result)
    edited.remove(result)
    edited.graph.operators.append(operator)


def run_twice(edited: Edited, result: str) -> None:
    edited.graph.operators.append(edited.operator(result))


def outputs_swapped(edited: Edited) -> None:
    first, second, _ = signature(edited).outputs
    first.tensorIndex, second.tensorIndex = second.tensorIndex, first.tensorIndex


def set_output(edited: Edited, result: str) -> None:
    signature(edited).outputs[0].tensorIndex = edited.index(result)


def same_names(edited: Edited) -> None:
    first, second, _ = signature(edited).outputs
    second.name = first.name


def without_order(edited: Edited, part: str, name: str, *keys: str) -> None:
    """Leave out of the metadata that a value or a constant is in block order."""

    def edit(metadata: dict[str, Any]) -> None:
        content = metadata[part]
        for key in (name, *keys)[:-1]:
            content = content[key]
        del content[(name, *keys)[-1]]

    edited.metadata(edit)


FILE_FAULTS: dict[str, tuple[str, Edit, str, str, str]] = {
    "an operator left out": ("gated", lambda e: e.remove("tanh"), "MUL", "tanh", "order"),
    "an operator too late": ("gated", lambda e: run_last(e, "mul"), "PAD", "mul", "order"),
    "an operator twice": ("gated", lambda e: run_twice(e, "mul"), "MUL", "mul", "order"),
    "an operator whose result nobody reads": (
        "squeezenet", lambda e: e.reads("concat", "requantize_1"), "CONV_2D", "requantize", "order",
    ),
    "an output that nothing writes": (
        "gated", lambda e: e.remove("pixel_shuffle"), "", "pixel_shuffle", "order",
    ),
    "outputs of the signature swapped": (
        "moves", outputs_swapped, "", "clamp", "order of the signature",
    ),
    "a name for a value inside": (
        "gated", lambda e: set_output(e, "tanh"), "", "tanh", "outputs of the signature",
    ),
    "an output without a name": (
        "moves", lambda e: signature(e).outputs.pop(), "", "clamp_1", "outputs of the signature",
    ),
    "a name for two outputs": ("moves", same_names, "", "clamp", "outputs of the signature"),
    "a convolution not permuted for the pixel shuffle": (
        "gated", lambda e: without_order(e, "constants", "head.weight", "output_block"),
        "DEPTH_TO_SPACE", "head_1", "block order",
    ),
    "a convolution not permuted for the pixel unshuffle": (
        "moves", lambda e: without_order(e, "constants", "down.weight", "input_block"),
        "CONV_2D", "pixel_unshuffle", "block order",
    ),
    "a value not said to be permuted": (
        "gated", lambda e: without_order(e, "block_order", "head_1"), "", "head_1",
        "block order in the metadata",
    ),
    "a value without a tensor": (
        "gated", lambda e: e.metadata(lambda m: m["values"].update(mul="nowhere")), "", "mul",
        "metadata",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", [*GRID_FAULTS, *FILE_FAULTS])
def test_the_verifier_names_the_operator_and_the_value(fault: str) -> None:
    network, edit, code, value, rule = {**GRID_FAULTS, **FILE_FAULTS}[fault]
    edited = Edited(lowered(network).data)
    edit(edited)
    found = violations(edited.data())
    assert (code, value, rule) in {(v.code, v.value, v.rule) for v in found}
