"""Rules on shapes: what each operator makes of its operands, as its kernel computes it.

A kernel computes the shape of its result anew and moves on, so a file may say another one.
For a window of `k` taps, `d` apart, every `s` positions of a dimension of `n`:

    SAME   ceil(n / s)
    VALID  ceil((n - (k - 1) d) / s)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from typing import TypeAlias

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from fuseq.backends.tflite.graph import Operator, Tensor
from fuseq.backends.tflite.verifier.violation import Violation, broken

Shape: TypeAlias = tuple[int, ...]
Rule: TypeAlias = Callable[[Operator], Iterator[Violation]]


def shape_violations(operator: Operator) -> Iterator[Violation]:
    """Every broken rule on an operator's shapes."""
    rule = RULES.get(operator.code)
    if rule is not None:
        yield from rule(operator)


def _result(operator: Operator, needed: Sequence[int] | None) -> Iterator[Violation]:
    found = operator.output.shape
    if needed is None:
        yield broken(operator, operator.output, "shape", found, "operands that go together")
    elif found != tuple(needed):
        yield broken(operator, operator.output, "shape", found, tuple(needed))


# --- one value at each place ---


def _elementwise(operator: Operator) -> Iterator[Violation]:
    yield from _result(operator, _broadcast([t.shape for t in operator.values]))


def _broadcast(shapes: Sequence[Shape]) -> Shape | None:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        return None


# --- windows ---


def _windows(operator: Operator, sizes: Shape, kernel: Shape) -> Shape:
    """Height and width of the result of a window."""
    same = operator.option("padding") == schema.Padding.SAME
    strides = operator.option("strideH"), operator.option("strideW")
    dilations = operator.option("dilationHFactor") or 1, operator.option("dilationWFactor") or 1
    spans = [0 if same else (k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    pairs = zip(sizes, spans, strides, strict=True)
    return tuple(-(-(n - span) // max(stride, 1)) for n, span, stride in pairs)


def _convolution(operator: Operator) -> Iterator[Violation]:
    source, weight, *bias = operator.values
    batch, height, width, channels = source.shape
    outputs, *kernel, depth = weight.shape
    yield from _added(operator, bias, outputs)
    if channels % depth or outputs % (channels // depth):
        yield broken(operator, weight, "channels of the weights", depth, f"a divisor of {channels}")
    sizes = _windows(operator, (height, width), tuple(kernel))
    yield from _result(operator, (batch, *sizes, outputs))


def _depthwise(operator: Operator) -> Iterator[Violation]:
    source, weight, *bias = operator.values
    batch, height, width, channels = source.shape
    first, *kernel, outputs = weight.shape
    yield from _added(operator, bias, outputs)
    multiplier = operator.option("depthMultiplier")
    if (first, outputs) != (1, channels * multiplier):
        needed = f"(1, kh, kw, {channels} x {multiplier})"
        yield broken(operator, weight, "shape of the weights", weight.shape, needed)
    sizes = _windows(operator, (height, width), tuple(kernel))
    yield from _result(operator, (batch, *sizes, outputs))


def _transposed_convolution(operator: Operator) -> Iterator[Violation]:
    """The result is what a convolution of this window would read to give the input."""
    weight, source, *bias = operator.values
    outputs, *kernel, depth = weight.shape
    yield from _added(operator, bias, outputs)
    if depth != source.shape[-1]:
        yield broken(operator, weight, "channels of the weights", depth, source.shape[-1])
    sizes = operator.integers(0)
    if sizes is not None:
        yield from _result(operator, sizes)
    read = _windows(operator, operator.output.shape[1:3], tuple(kernel))
    if read != source.shape[1:3]:
        rule = "size that a convolution takes back to the input's"
        yield broken(operator, operator.output, rule, read, source.shape[1:3])
    yield from _result(operator, (source.shape[0], *operator.output.shape[1:3], outputs))


def _linear(operator: Operator) -> Iterator[Violation]:
    source, weight, *bias = operator.values
    outputs, depth = weight.shape
    yield from _added(operator, bias, outputs)
    if prod(source.shape) % depth:
        yield broken(operator, weight, "depth of the weights", depth, f"fits {source.shape}")
        return
    kept = operator.option("keepNumDims")
    rows = source.shape[:-1] if kept else (prod(source.shape) // depth,)
    yield from _result(operator, (*rows, outputs))


def _added(operator: Operator, biases: Sequence[Tensor], channels: int) -> Iterator[Violation]:
    for bias in biases:
        if bias.shape != (channels,):
            yield broken(operator, bias, "shape of a bias", bias.shape, (channels,))


def _pool(operator: Operator) -> Iterator[Violation]:
    batch, height, width, channels = operator.values[0].shape
    kernel = operator.option("filterHeight"), operator.option("filterWidth")
    yield from _result(operator, (batch, *_windows(operator, (height, width), kernel), channels))


# --- moves ---


def _concatenation(operator: Operator) -> Iterator[Violation]:
    shapes = [tensor.shape for tensor in operator.values]
    axis = operator.option("axis") % len(shapes[0])
    rest = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    if len(rest) > 1:
        yield from _result(operator, None)
        return
    total = sum(shape[axis] for shape in shapes)
    yield from _result(operator, (*shapes[0][:axis], total, *shapes[0][axis + 1 :]))


def _reshape(operator: Operator) -> Iterator[Violation]:
    source, wished = operator.values[0].shape, operator.integers(1)
    if wished is None:
        return
    if -1 in wished:
        known = prod(n for n in wished if n != -1)
        wished[wished.index(-1)] = prod(source) // max(known, 1)
    if prod(wished) != prod(source):
        rule = "number of elements"
        yield broken(operator, operator.output, rule, tuple(wished), f"{prod(source)}, {source}")
    yield from _result(operator, wished)


def _transpose(operator: Operator) -> Iterator[Violation]:
    source, axes = operator.values[0].shape, operator.integers(1)
    if axes is None:
        return
    if sorted(axes) != list(range(len(source))):
        needed = f"each of 0 to {len(source) - 1} once"
        yield broken(operator, operator.output, "axes", axes, needed)
        return
    yield from _result(operator, [source[axis] for axis in axes])


def _depth_to_space(operator: Operator) -> Iterator[Violation]:
    batch, height, width, channels = operator.values[0].shape
    block = operator.option("blockSize")
    if channels % block**2:
        yield broken(operator, operator.output, "block", block, f"its square divides {channels}")
    yield from _result(operator, (batch, height * block, width * block, channels // block**2))


def _space_to_depth(operator: Operator) -> Iterator[Violation]:
    batch, height, width, channels = operator.values[0].shape
    block = operator.option("blockSize")
    if height % block or width % block:
        yield broken(operator, operator.output, "block", block, f"a divisor of {height} x {width}")
    yield from _result(operator, (batch, height // block, width // block, channels * block**2))


def _pad(operator: Operator) -> Iterator[Violation]:
    source, amounts = operator.values[0].shape, operator.integers(1)
    if amounts is None:
        return
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
    if len(pairs) != len(source) or min(amounts) < 0:
        yield broken(operator, operator.output, "padding", pairs, f"0 or more on {source}")
        return
    reflected = operator.code == "MIRROR_PAD"
    if reflected and any(max(pair) >= n for pair, n in zip(pairs, source, strict=True)):
        yield broken(operator, operator.output, "padding", pairs, f"less than {source}")
    yield from _result(operator, [n + sum(pair) for n, pair in zip(source, pairs, strict=True)])


def _strided_slice(operator: Operator) -> Iterator[Violation]:
    source = operator.values[0].shape
    corners = [operator.integers(position) for position in (1, 2, 3)]
    free, cut = operator.option("beginMask"), operator.option("endMask")
    if operator.option("ellipsisMask") or operator.option("newAxisMask") or None in corners:
        return
    begin, end, step = (corner or [] for corner in corners)
    sizes = []
    for d, n in enumerate(source):
        first = None if free >> d & 1 else begin[d]
        last = None if cut >> d & 1 else end[d]
        if not operator.option("shrinkAxisMask") >> d & 1:
            sizes.append(len(range(*slice(first, last, step[d]).indices(n))))
    yield from _result(operator, sizes)


def _slice(operator: Operator) -> Iterator[Violation]:
    source, begin, sizes = operator.values[0].shape, operator.integers(1), operator.integers(2)
    if begin is None or sizes is None:
        return
    rest = zip(source, begin, sizes, strict=True)
    needed = [n - first if size == -1 else size for n, first, size in rest]
    if any(b < 0 or b + size > n for n, b, size in zip(source, begin, needed, strict=True)):
        yield broken(operator, operator.output, "corners", (begin, needed), f"within {source}")
    yield from _result(operator, needed)


def _split(operator: Operator) -> Iterator[Violation]:
    source, axes = operator.values[0].shape, operator.integers(0)
    if axes is None:
        return
    axis, parts = axes[0] % len(source), len(operator.outputs)
    needed = (*source[:axis], source[axis] // parts, *source[axis + 1 :])
    for tensor in operator.outputs:
        if tensor.shape != needed or source[axis] % parts:
            yield broken(operator, tensor, "shape", tensor.shape, needed)


def _resize(operator: Operator) -> Iterator[Violation]:
    batch, _, _, channels = operator.values[0].shape
    sizes = operator.integers(1)
    if operator.option("alignCorners") and operator.option("halfPixelCenters"):
        rule = "align_corners or half_pixel_centers"
        yield broken(operator, operator.output, rule, "both", "one, or none")
    if sizes is not None:
        yield from _result(operator, (batch, *sizes, channels))


# --- sums ---


def _reduction(operator: Operator) -> Iterator[Violation]:
    source, axes = operator.values[0].shape, operator.integers(1)
    if axes is None:
        return
    if any(not -len(source) <= axis < len(source) for axis in axes):
        yield broken(operator, operator.output, "axes", axes, f"dimensions of {source}")
        return
    reduced = {axis % len(source) for axis in axes}
    keep = operator.option("keepDims")
    shape = [1 if d in reduced else n for d, n in enumerate(source) if keep or d not in reduced]
    yield from _result(operator, shape)


def _matmul(operator: Operator) -> Iterator[Violation]:
    left, right = (list(tensor.shape) for tensor in operator.values)
    for shape, flag in ((left, "adjX"), (right, "adjY")):
        if operator.option(flag):
            shape[-2:] = shape[:-3:-1]
    batch = _broadcast([tuple(left[:-2]), tuple(right[:-2])])
    if batch is None or left[-1] != right[-2]:
        yield from _result(operator, None)
        return
    yield from _result(operator, (*batch, left[-2], right[-1]))


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        "ABS ADD DEQUANTIZE DIV EXP GELU HARD_SWISH L2_NORMALIZATION LEAKY_RELU LOG LOGISTIC "
        "MAXIMUM MINIMUM MUL NEG PRELU QUANTIZE RELU RELU6 RSQRT SOFTMAX SQRT SQUARED_DIFFERENCE "
        "SUB TANH".split(),
        _elementwise,
    ),
    "AVERAGE_POOL_2D": _pool,
    "BATCH_MATMUL": _matmul,
    "CONCATENATION": _concatenation,
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "DEPTH_TO_SPACE": _depth_to_space,
    "FULLY_CONNECTED": _linear,
    "MAX_POOL_2D": _pool,
    "MEAN": _reduction,
    "MIRROR_PAD": _pad,
    "PAD": _pad,
    "PADV2": _pad,
    "RESHAPE": _reshape,
    "RESIZE_BILINEAR": _resize,
    "RESIZE_NEAREST_NEIGHBOR": _resize,
    "SLICE": _slice,
    "SPACE_TO_DEPTH": _space_to_depth,
    "SPLIT": _split,
    "STRIDED_SLICE": _strided_slice,
    "TRANSPOSE": _transpose,
    "TRANSPOSE_CONV": _transposed_convolution,
}
"""By operator. Those of others are not checked."""
