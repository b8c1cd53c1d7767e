"""What the format cannot hold: every reason at once, with what would help."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import fx, nn

from fuseq import ops
from fuseq.backend import Refusal
from fuseq.backends.tflite.file import TYPES
from fuseq.backends.tflite.forms import FORMS
from fuseq.backends.tflite.order import block_orders, is_wide
from fuseq.program import Program

Reason: TypeAlias = tuple[str, str]
"""Why, and what would make it possible."""

_LAYERS = frozenset({"conv2d", "conv_transpose2d", "linear", "requantize"})
_NARROW: Mapping[str, Reason] = {
    "hardswish": ("HARD_SWISH has no kernel of 16 bits", "x * F.hardsigmoid(x), or 8 bits"),
    "prelu": ("PRELU has no kernel of 16 bits", "F.leaky_relu, or 8 bits"),
}
"""Ops that have integers of 8 bits only."""

_SIZED = frozenset(
    "interpolate interpolate_nearest reshape unsqueeze conv_transpose2d adaptive_avg_pool".split()
)
"""Ops that have sizes of images in the file."""


def refusals(program: Program, resizable: bool) -> list[Refusal]:
    """Reasons why a program cannot be written.

    Args:
        program: legalized, float or quantized.
        resizable: whether height and width of the inputs stay open.
    """
    found = []
    for node in program.graph.nodes:
        reason = _reason(program, node)
        if resizable and program.origin.dynamic:
            reason = reason or _size_in_the_file(program, node)
        if reason:
            found.append(Refusal(node.name, program.source(node), *reason))
    return found


def _reason(program: Program, node: fx.Node) -> Reason | None:
    name = ops.name_of(program, node)
    if name in ("input", "output", "constant"):
        return _dtype(node) if name == "input" or _is_output(node) else None
    if name == "shape":
        return "a size that is computed at run time", "-b tflite without resizable"
    if name not in FORMS and name not in _LAYERS:
        known = "rewrite it with ops of the vocabulary (docs/vocabulary.md)"
        return f"no TFLite operator computes {name.removeprefix('foreign:')}", known
    if name in _NARROW and is_wide(program, node):
        return _NARROW[name]
    check = _CHECKS.get(name)
    return (check(program, node) if check else None) or (_dtype(node) if _is_output(node) else None)


def _size_in_the_file(program: Program, node: fx.Node) -> Reason | None:
    """Why an op cannot follow the size of the input."""
    name = ops.name_of(program, node)
    if name in ("max_pool", "avg_pool") and node.kwargs["ceil_mode"]:
        return "windows that may hang over the edge", "ceil_mode=False, or a fixed size"
    deep = node if name == "pixel_unshuffle" else next(iter(node.all_input_nodes), node)
    split = name in ("pixel_shuffle", "pixel_unshuffle") and deep not in block_orders(program)
    if name in _SIZED or split:
        return f"the size that {name} gives is a number in the file", "-b tflite, at a fixed size"
    return None


def _is_output(node: fx.Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _dtype(node: fx.Node) -> Reason | None:
    dtype = str(node.meta["dtype"]).removeprefix("torch.")
    if dtype in TYPES:
        return None
    return f"a value of {dtype}, which the file has no place for", "return y.float()"


def _conv_transpose2d(program: Program, node: fx.Node) -> Reason | None:
    layer = program.get(node)
    assert isinstance(layer, nn.ConvTranspose2d)
    if layer.groups > 1:
        return "TRANSPOSE_CONV has no groups", "groups=1"
    if any(d > 1 for d in layer.dilation):
        return "TRANSPOSE_CONV has no dilation", "dilation=1"
    assert not isinstance(layer.padding, str)
    pairs = zip(layer.output_padding, layer.padding, strict=True)
    if any(after > before for after, before in pairs):
        return "an output padding that lies past what the kernel reaches", "output_padding=0"
    return None


def _linear(program: Program, node: fx.Node) -> Reason | None:
    shape = program.shape(node.all_input_nodes[0])
    if len(shape) != 2:
        return f"FULLY_CONNECTED takes rows, and here is {shape}", "--passes fuse-affine,legalize"
    return None


def _max_pool(program: Program, node: fx.Node) -> Reason | None:
    if node.kwargs["dilation"] != (1, 1):
        return "MAX_POOL_2D has no dilation", "dilation=1"
    return None


def _avg_pool(program: Program, node: fx.Node) -> Reason | None:
    k: dict[str, Any] = dict(node.kwargs)
    if k["divisor_override"] is not None:
        return "AVERAGE_POOL_2D has no divisor of its own", "divisor_override=None"
    if any(k["padding"]) and not k["count_include_pad"]:
        return "AVERAGE_POOL_2D has no torch padding that is not counted", "count_include_pad=True"
    sizes, outputs = (program.shape(n)[2:] for n in (node.all_input_nodes[0], node))
    windows = zip(sizes, outputs, k["kernel_size"], k["stride"], k["padding"], strict=True)
    if any((out - 1) * stride + kernel > n + 2 * pad for n, out, kernel, stride, pad in windows):
        return "a window that hangs over the edge, which torch divides otherwise", "ceil_mode=False"
    return None


def _adaptive_avg_pool(program: Program, node: fx.Node) -> Reason | None:
    sizes, outputs = (program.shape(n)[2:] for n in (node.all_input_nodes[0], node))
    if any(n % m for n, m in zip(sizes, outputs, strict=True)):
        return f"bins of unequal size ({sizes} into {outputs})", "a size that divides the input's"
    return None


def _interpolate(program: Program, node: fx.Node) -> Reason | None:
    k: dict[str, Any] = dict(node.kwargs)
    if k["mode"] not in ("nearest", "bilinear"):
        return f"no TFLite operator resizes by {k['mode']}", "mode='bilinear' or 'nearest'"
    sizes = program.shape(node.all_input_nodes[0])[2:]
    outputs, factors = program.shape(node)[2:], k["scale_factor"]
    if len(outputs) != 2:
        return "a resize of other than height and width", "an image of four dimensions"
    pairs = zip(sizes, factors or (), strict=False)
    if factors and outputs != tuple(n * factor for n, factor in pairs):
        return f"a factor {factors} that gives no whole size", "size=, or a whole factor"
    return None


def _pad(program: Program, node: fx.Node) -> Reason | None:
    k: dict[str, Any] = dict(node.kwargs)
    if k["mode"] not in ("constant", "reflect"):
        return f"no TFLite operator pads by {k['mode']}", "mode='constant' or 'reflect'"
    if min(k["pad"]) < 0 and k["mode"] != "constant":
        return f"a negative pad by {k['mode']}, which cuts", "a slice"
    return None


def _slice(program: Program, node: fx.Node) -> Reason | None:
    k: dict[str, Any] = dict(node.kwargs)
    if any(isinstance(value, fx.Node) for value in k.values()):
        return "an edge that is computed at run time", "-b tflite without resizable"
    return None


_CHECKS: dict[str, Callable[[Program, fx.Node], Reason | None]] = {
    "conv_transpose2d": _conv_transpose2d,
    "linear": _linear,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "adaptive_avg_pool": _adaptive_avg_pool,
    "interpolate": _interpolate,
    "interpolate_nearest": _interpolate,
    "pad": _pad,
    "pad_value": _pad,
    "slice": _slice,
}
