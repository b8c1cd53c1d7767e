"""Versions of operators: as low as what is used of them allows, as high as every kernel set knows.

A version says which additions to an operator a file uses. One that is too low makes an older
runtime run what it does not know; one that is too high is refused when the file is loaded, by one
set of kernels or by both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fuseq.backends.tflite.file import VERSIONS, version_of_form
from fuseq.backends.tflite.graph import Operator
from fuseq.backends.tflite.verifier.violation import Violation, broken

HIGHEST: Mapping[str, int] = {
    "ABS": 3,
    "ADD": 5,
    "AVERAGE_POOL_2D": 3,
    "BATCH_MATMUL": 4,
    "CONCATENATION": 7,
    "CONV_2D": 8,
    "DEPTHWISE_CONV_2D": 6,
    "DEPTH_TO_SPACE": 1,
    "DEQUANTIZE": 9,
    "DIV": 2,
    "EXP": 2,
    "FULLY_CONNECTED": 14,
    "GELU": 2,
    "HARD_SWISH": 1,
    "LEAKY_RELU": 2,
    "LOG": 2,
    "LOGISTIC": 3,
    "MAXIMUM": 4,
    "MAX_POOL_2D": 3,
    "MEAN": 3,
    "MINIMUM": 4,
    "MIRROR_PAD": 3,
    "MUL": 7,
    "NEG": 1,
    "PAD": 6,
    "PADV2": 6,
    "PRELU": 1,
    "QUANTIZE": 6,
    "RELU": 3,
    "RELU6": 3,
    "RESHAPE": 1,
    "RESIZE_BILINEAR": 4,
    "RESIZE_NEAREST_NEIGHBOR": 4,
    "RSQRT": 3,
    "SOFTMAX": 3,
    "SPACE_TO_DEPTH": 2,
    "SQRT": 2,
    "STRIDED_SLICE": 4,
    "SUB": 5,
    "TANH": 3,
    "TRANSPOSE": 8,
    "TRANSPOSE_CONV": 5,
}
"""Highest version that both kernel sets of ai-edge-litert 2.3.0 load (tests measure it)."""


def version_violations(operator: Operator) -> Iterator[Violation]:
    """Versions that do not fit what the operator does."""
    low, high = lowest_version(operator), HIGHEST.get(operator.code)
    if low is None or high is None or low <= operator.version <= high:
        return
    needed = str(low) if low == high else f"{low} to {high}"
    yield broken(operator, operator.output, "version", operator.version, needed)


def lowest_version(operator: Operator) -> int | None:
    """Lowest version that has what the operator uses; None for operators fuseq never writes."""
    values = operator.values
    known = VERSIONS.get(operator.code, {})
    if values[0].dtype not in known:
        return None
    if _is_per_channel(operator):
        return 12
    scales = [float(t.scales[0]) for t in (*values, operator.output) if t.scales.size == 1]
    shapes = [tensor.shape for tensor in values]
    result = operator.output.dtype
    form = version_of_form(operator.code, shapes, scales, result, operator.options)
    return max(known[values[0].dtype], form)


def _is_per_channel(operator: Operator) -> bool:
    """A linear layer with a scale per channel: kernels of old took the first scale for all."""
    values = operator.values
    return operator.code == "FULLY_CONNECTED" and values[1].scales.size > 1
