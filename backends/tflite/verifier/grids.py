"""Rules on what integers stand for: scales, zero points and dtypes of an operator's tensors.

With `q` an integer, a tensor holds `scale * (q - zero_point)`. An operator that only moves or
chooses integers is right only if all its tensors have one grid; LiteRT runs it all the same where
they differ. A layer adds `bias` to products of integers, so a bias stands for
`float32(scale_x * scale_w) * q`, per output channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from fuseq.backends.tflite.file import VERSIONS
from fuseq.backends.tflite.graph import INDICES, Operator, Tensor
from fuseq.backends.tflite.verifier.violation import Violation, broken
from fuseq.quant.grid import LIMITS

SAME_GRID = frozenset(
    "AVERAGE_POOL_2D BROADCAST_TO CONCATENATION DEPTH_TO_SPACE EXPAND_DIMS GATHER MAXIMUM "
    "MAX_POOL_2D MINIMUM MIRROR_PAD PACK PAD PADV2 RESHAPE RESIZE_BILINEAR "
    "RESIZE_NEAREST_NEIGHBOR SLICE SPACE_TO_DEPTH SPLIT SPLIT_V SQUEEZE STRIDED_SLICE TILE "
    "TRANSPOSE UNPACK".split()
)
"""Operators that move or choose integers."""

FIXED: Mapping[str, Mapping[str, tuple[float, int]]] = {
    "L2_NORMALIZATION": {"int8": (1 / 128, 0)},
    "LOGISTIC": {"int8": (1 / 256, -128), "int16": (1 / 32768, 0)},
    "SOFTMAX": {"int8": (1 / 256, -128), "int16": (1 / 32768, 0)},
    "TANH": {"int8": (1 / 128, 0), "int16": (1 / 32768, 0)},
}
"""Scale and zero point of the result, by its dtype."""

LAYERS: Mapping[str, tuple[int, int, int, int]] = {
    "CONV_2D": (0, 1, 2, 0),
    "DEPTHWISE_CONV_2D": (0, 1, 2, 3),
    "FULLY_CONNECTED": (0, 1, 2, 0),
    "TRANSPOSE_CONV": (2, 1, 3, 0),
}
"""Positions of input, weight and bias, and the weight's dimension of output channels."""

_INTEGERS = frozenset({"int8", "uint8", "int16"})
_MIXED = frozenset({"QUANTIZE", "DEQUANTIZE", *LAYERS})


def grid_violations(operator: Operator) -> Iterator[Violation]:
    """Every broken rule on an operator's grids and dtypes."""
    for tensor in (*operator.values, *operator.outputs):
        yield from _numbers(operator, tensor)
    yield from _dtypes(operator)
    if operator.code in SAME_GRID:
        yield from _same_grid(operator)
    fixed = FIXED.get(operator.code, {}).get(operator.output.dtype)
    if fixed is not None and _grid(operator.output) != fixed:
        yield broken(operator, operator.output, "fixed grid", _shown(operator.output), fixed)
    if operator.code in LAYERS and operator.output.dtype in _INTEGERS:
        yield from _layer(operator)


def _numbers(operator: Operator, tensor: Tensor) -> Iterator[Violation]:
    """Numbers that are no scale or no zero point."""
    scales, zero_points = tensor.scales, tensor.zero_points
    if scales.size != zero_points.size:
        yield broken(operator, tensor, "a zero point per scale", zero_points.size, scales.size)
    if not np.all(np.isfinite(scales) & (scales > 0)):
        yield broken(operator, tensor, "scale", scales.tolist(), "finite and above 0")
    low, high = LIMITS.get(tensor.dtype, (0, 0))
    if tensor.dtype == "int16":
        low = high = 0
    if tensor.dtype in _INTEGERS and not np.all((low <= zero_points) & (zero_points <= high)):
        yield broken(operator, tensor, "zero point", zero_points.tolist(), f"{low} to {high}")
    if tensor.content is None and scales.size > 1:
        yield broken(operator, tensor, "one scale per value", scales.size, 1)


def _dtypes(operator: Operator) -> Iterator[Violation]:
    """Operands that do not go together; integers that stand for nothing."""
    if operator.code not in VERSIONS and operator.code not in SAME_GRID:
        return
    indices = INDICES.get(operator.code, frozenset())
    for position, tensor in enumerate(operator.inputs):
        if tensor is not None and position in indices and tensor.dtype not in ("int32", "int64"):
            yield broken(operator, tensor, "dtype of sizes", tensor.dtype, "int32 or int64")
    tensors = [*operator.values, *operator.outputs]
    if operator.code not in _MIXED:
        first = tensors[0].dtype
        for tensor in tensors[1:]:
            if tensor.dtype != first:
                yield broken(operator, tensor, "one dtype", tensor.dtype, first)
    if operator.code == "DEQUANTIZE" and operator.output.dtype != "float32":
        yield broken(operator, operator.output, "dtype", operator.output.dtype, "float32")
    if any(t.quantized for t in tensors) or operator.code not in SAME_GRID:
        for tensor in tensors:
            if tensor.dtype in _INTEGERS and not tensor.quantized:
                yield broken(operator, tensor, "scale", "none", "a scale")


def _same_grid(operator: Operator) -> Iterator[Violation]:
    result = operator.output
    for tensor in (*operator.values, *operator.outputs[1:]):
        if tensor.dtype in _INTEGERS and _grid(tensor) != _grid(result):
            yield broken(operator, tensor, "grid of the result", _shown(tensor), _shown(result))


def _layer(operator: Operator) -> Iterator[Violation]:
    positions = LAYERS[operator.code]
    source, weight, bias = (operator.operand(position) for position in positions[:3])
    assert source is not None
    assert weight is not None
    if source.dtype != operator.output.dtype:
        yield broken(operator, operator.output, "one dtype", operator.output.dtype, source.dtype)
    yield from _weight(operator, weight, positions[3])
    if bias is not None:
        yield from _bias(operator, source, weight, bias)


def _weight(operator: Operator, weight: Tensor, axis: int) -> Iterator[Violation]:
    if weight.dtype not in ("int8", "int4"):
        yield broken(operator, weight, "dtype of weights", weight.dtype, "int8")
    if np.any(weight.zero_points):
        yield broken(operator, weight, "zero points of weights", weight.zero_points.tolist(), 0)
    channels = weight.shape[axis]
    if weight.scales.size not in (1, channels):
        needed = f"1 or {channels}, one per output channel"
        yield broken(operator, weight, "scales of weights", weight.scales.size, needed)
    if weight.scales.size > 1 and weight.axis != axis:
        yield broken(operator, weight, "dimension of the weights' scales", weight.axis, axis)
    if weight.content is not None and weight.dtype == "int8" and weight.content.min() < -127:
        yield broken(operator, weight, "weights", -128, "-127 to 127")


def _bias(operator: Operator, source: Tensor, weight: Tensor, bias: Tensor) -> Iterator[Violation]:
    wide = source.dtype == "int16"
    if bias.dtype != "int32" and not (wide and bias.dtype == "int64"):
        yield broken(operator, bias, "dtype of a bias", bias.dtype, "int32")
    if np.any(bias.zero_points):
        yield broken(operator, bias, "zero points of a bias", bias.zero_points.tolist(), 0)
    if not source.quantized:
        return
    products = source.scales[0] * weight.scales
    if not np.array_equal(bias.scales, products):
        rule = "scales of a bias are those of input times weights"
        yield broken(operator, bias, rule, bias.scales.tolist(), products.tolist())


def _grid(tensor: Tensor) -> tuple[float, int] | None:
    """Scale and zero point of a tensor that has one of each."""
    if tensor.scales.size != 1 or tensor.zero_points.size != 1:
        return None
    return float(tensor.scales[0]), int(tensor.zero_points[0])


def _shown(tensor: Tensor) -> str:
    return f"{tensor.scales.tolist()} {tensor.zero_points.tolist()}"
