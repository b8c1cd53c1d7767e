"""The canonical vocabulary: every op a pass or a backend may meet, once.

Tensor inputs are positional; attributes are keywords, always all present. Ops with parameters are
calls of a module; all others are calls of the function in `FUNCTIONS`. A node outside this table
is a *foreign* op: a boundary that stays float and is listed, never rewritten.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fuseq.program import Program

slice_tensor = torch.ops.aten.slice.Tensor
slice_scatter = torch.ops.aten.slice_scatter.default
sym_size = torch.ops.aten.sym_size.int


def requantize(x: Tensor) -> Tensor:
    """Identity in float; in integers, a move from one grid to another."""
    return x


MODULES: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv2d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.Linear: "linear",
    nn.BatchNorm2d: "batch_norm",
    nn.BatchNorm1d: "batch_norm1d",
    nn.InstanceNorm2d: "instance_norm",
    nn.GroupNorm: "group_norm",
    nn.LayerNorm: "layer_norm",
    nn.PReLU: "prelu",
}

FUNCTIONS: dict[Callable[..., Any], str] = {
    torch.add: "add",
    torch.sub: "sub",
    torch.mul: "mul",
    torch.div: "div",
    torch.cat: "concat",
    torch.matmul: "matmul",
    torch.relu: "relu",
    torch.clamp: "clamp",
    torch.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    torch.rsqrt: "rsqrt",
    F.leaky_relu: "leaky_relu",
    F.hardsigmoid: "hardsigmoid",
    F.hardswish: "hardswish",
    F.silu: "silu",
    F.gelu: "gelu",
    F.softmax: "softmax",
    F.max_pool2d: "max_pool",
    F.avg_pool2d: "avg_pool",
    F.adaptive_avg_pool2d: "adaptive_avg_pool",
    F.interpolate: "interpolate",
    F.pixel_shuffle: "pixel_shuffle",
    F.pixel_unshuffle: "pixel_unshuffle",
    F.pad: "pad",
    torch.mean: "mean",
    torch.reshape: "reshape",
    torch.permute: "permute",
    torch.unsqueeze: "unsqueeze",
    slice_tensor: "slice",
    slice_scatter: "slice_scatter",
    requantize: "requantize",
}

ATTRIBUTES: dict[str, frozenset[str]] = {
    name: frozenset(attributes.split())
    for name, attributes in {
        "add": "", "sub": "", "mul": "", "div": "", "matmul": "", "relu": "", "sigmoid": "",
        "tanh": "", "rsqrt": "", "requantize": "", "hardsigmoid": "", "hardswish": "", "silu": "",
        "concat": "dim",
        "clamp": "min max",
        "leaky_relu": "negative_slope",
        "gelu": "approximate",
        "softmax": "dim",
        "max_pool": "kernel_size stride padding dilation ceil_mode",
        "avg_pool": "kernel_size stride padding ceil_mode count_include_pad divisor_override",
        "adaptive_avg_pool": "output_size",
        "interpolate": "size scale_factor mode align_corners",
        "interpolate_nearest": "size scale_factor mode align_corners",
        "pixel_shuffle": "upscale_factor",
        "pixel_unshuffle": "downscale_factor",
        "pad": "pad mode value",
        "pad_value": "pad mode value",
        "mean": "dim keepdim",
        "reshape": "shape",
        "permute": "dims",
        "unsqueeze": "dim",
        "slice": "dim start end step",
        "slice_scatter": "dim start end step",
    }.items()
}  # fmt: skip

SHAPE_ARITHMETIC = frozenset(
    (sym_size, operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod)
)

_VARIANTS = ("interpolate_nearest", "pad_value")
"""Names that `name_of` gives to functions with certain attributes."""

VOCABULARY = frozenset((*MODULES.values(), *FUNCTIONS.values(), *_VARIANTS))


def name_of(program: Program, node: fx.Node) -> str:
    """Canonical name of a node's op.

    Returns:
        A name in `VOCABULARY`, or "input", "output", "constant", "shape" (integer arithmetic on
        sizes), or `foreign:<target>`.
    """
    if node.op == "placeholder":
        return "input"
    if node.op == "output":
        return "output"
    if node.op == "get_attr":
        return "constant"
    if node.op == "call_module":
        return MODULES.get(type(program.get(node)), f"foreign:{type(program.get(node)).__name__}")
    if node.target is F.interpolate and node.kwargs["mode"] == "nearest":
        return "interpolate_nearest"  # it moves values, where the other modes compute
    if node.target is F.pad and node.kwargs.get("value"):
        return "pad_value"  # a fill that other grids than the input's hold
    if node.target in FUNCTIONS:
        return FUNCTIONS[node.target]
    if node.target in SHAPE_ARITHMETIC:
        return "shape"
    return f"foreign:{getattr(node.target, '__name__', None) or node.target}"


def count(program: Program, *names: str) -> int:
    """Number of nodes whose op has one of the names."""
    return sum(name_of(program, node) in names for node in program.graph.nodes)
