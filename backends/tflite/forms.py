"""TFLite form of each canonical op without weights, in integers and in float.

A form gets the tensors of the operands and of the result, shapes as stored, and adds operators. On
grids it adds the one operator whose kernel the executor models; between floats, whatever computes
the op.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn

from fuseq.backends.tflite.arrangement import (
    inverse,
    moves_nothing,
    reshaped,
    reshaped_value,
    stored_axes,
    stored_axis,
    stored_shape,
    transposed,
)
from fuseq.backends.tflite.site import Form, Site
from fuseq.backends.tflite.windows import adaptive_avg_pool, avg_pool, max_pool
from fuseq.quant.grid import Grid, slope_grid
from fuseq.quant.structure import bounds


def _plain(code: str, options: str = "") -> Form:
    return lambda site: site.op(code, options)


def _absorbing(code: str, options: str, **fields: Any) -> Form:
    return lambda site: site.op(code, options, fusedActivationFunction=site.fused, **fields)


def _clamp(site: Site) -> None:
    """On grids: move to the result's grid, which saturates, and cut what it does not end at."""
    low, high = bounds(site.node)
    if (low, high) == (0.0, 6.0):
        site.op("RELU6")
        return
    file, value = site.file, site.inputs[0]
    grid = file.grids[site.output]
    steps: list[tuple[str, str, list[int]]] = []
    if grid is not None and grid != file.grids[value]:
        steps.append(("QUANTIZE", "Quantize", []))
    for code, bound in (("MAXIMUM", low), ("MINIMUM", high)):
        if np.isfinite(bound) and not _cut_anyway(code, bound, grid):
            steps.append((code, "MaximumMinimum", [_limit(site, bound, grid)]))
    for left, (code, options, more) in reversed(list(enumerate(reversed(steps or [_SAME])))):
        name = f"{site.node.name}.{code.lower()}"
        result = file.like(site.output, name, file.shapes[value]) if left else site.output
        value = file.op(code, [value, *more], result, options)


_SAME: tuple[str, str, list[int]] = ("QUANTIZE", "Quantize", [])
"""Where the grid cuts all there is to cut."""


def _on_grid(bound: float, grid: Grid) -> int:
    return int(grid.quantize(torch.tensor(bound)))


def _cut_anyway(code: str, bound: float, grid: Grid | None) -> bool:
    """Whether the grid ends where the clamp does."""
    if grid is None:
        return False
    return _on_grid(bound, grid) == (grid.qmin if code == "MAXIMUM" else grid.qmax)


def _limit(site: Site, bound: float, grid: Grid | None) -> int:
    if grid is None:
        return site.number(bound)
    array = np.array([_on_grid(bound, grid)], grid.dtype)
    return site.file.constant(f"{site.node.name}.bound", array, grid)


def _leaky_relu(site: Site) -> None:
    site.op("LEAKY_RELU", "LeakyRelu", alpha=site.node.kwargs["negative_slope"])


def _prelu(site: Site) -> None:
    """PRELU; its slopes have a grid of their own, which follows from them."""
    layer, file = site.program.get(site.node), site.file
    assert isinstance(layer, nn.PReLU)
    real, name = layer.weight.detach(), f"{site.node.name}.slopes"
    shape = (1,) * (len(file.shapes[site.output]) - 2) + (-1,)  # (1, 1, C) for an image
    if file.grids[site.output] is None:
        slopes = file.constant(name, real.numpy().reshape(shape))
    else:
        grid = slope_grid(real, "int8")
        array = grid.quantize(real).numpy().astype(grid.dtype)
        slopes = file.constant(name, array.reshape(shape), grid)
    file.op("PRELU", [site.inputs[0], slopes], site.output)


def _gelu(site: Site) -> None:
    site.op("GELU", "Gelu", approximate=site.node.kwargs["approximate"] == "tanh")


def _softmax(site: Site) -> None:
    """SOFTMAX runs over what is stored last; an attention's is turned there and back."""
    file, dim = site.file, site.node.kwargs["dim"]
    rank = len(site.program.shape(site.node))
    axis, last = stored_axis(dim, rank), rank - 1  # type: ignore[arg-type]
    if axis == last:
        site.op("SOFTMAX", "Softmax", beta=1.0)
        return
    axes = list(range(rank))
    axes[axis], axes[last] = axes[last], axes[axis]
    shape = [file.shapes[site.output][a] for a in axes]
    turned, softened = (
        file.like(i, f"{site.node.name}.turned", shape) for i in (site.inputs[0], site.output)
    )
    transposed(file, site.inputs[0], file.shapes[site.inputs[0]], axes, turned)
    file.op("SOFTMAX", [turned], softened, "Softmax", beta=1.0)
    transposed(file, softened, shape, axes, site.output)


def _hardsigmoid(site: Site) -> None:
    """In float: `relu6(x + 3) / 6`."""
    shape = site.file.shapes[site.output]
    raised = site.step("ADD", [site.inputs[0], site.number(3.0)], shape, "Add")
    cut = site.step("RELU6", [raised], shape)
    site.file.op("MUL", [cut, site.number(1 / 6)], site.output, "Mul")


def _silu(site: Site) -> None:
    """In float: `x * sigmoid(x)`."""
    gate = site.step("LOGISTIC", site.inputs, site.file.shapes[site.output])
    site.file.op("MUL", [site.inputs[0], gate], site.output, "Mul")


def _instance_norm(site: Site) -> None:
    """In float: `(x - mean) rsqrt(variance + eps)`, then weight and bias."""
    norm, file = site.program.get(site.node), site.file
    assert isinstance(norm, nn.InstanceNorm2d)
    shape = file.shapes[site.output]
    pooled, axes = (shape[0], 1, 1, shape[3]), file.integers(1, 2)
    keep: dict[str, Any] = {"options": "Reducer", "keepDims": True}
    mean = site.step("MEAN", [site.inputs[0], axes], pooled, **keep)
    centered = site.step("SUB", [site.inputs[0], mean], shape, "Sub")
    square = site.step("MUL", [centered, centered], shape, "Mul")
    variance = site.step("MEAN", [square, axes], pooled, **keep)
    stable = site.step("ADD", [variance, site.number(norm.eps)], pooled, "Add")
    factor = site.step("RSQRT", [stable], pooled)
    if norm.weight is None:
        file.op("MUL", [centered, factor], site.output, "Mul")
        return
    normed = site.step("MUL", [centered, factor], shape, "Mul")
    name = site.node.name
    weight = file.constant(f"{name}.weight", norm.weight.detach().numpy())
    bias = file.constant(f"{name}.bias", norm.bias.detach().numpy())
    scaled = site.step("MUL", [normed, weight], shape, "Mul")
    file.op("ADD", [scaled, bias], site.output, "Add")


def _mean(site: Site) -> None:
    """MEAN; what is left of an image may have to be turned, for it is no image any more."""
    k: dict[str, Any] = dict(site.node.kwargs)
    file, shape = site.file, site.shape_of_operand()
    rank, dims = len(shape), {d % len(shape) for d in k["dim"]}
    axes = sorted(stored_axis(d, rank) for d in dims)
    left = [axis for axis in stored_axes(rank) if axis not in dims]
    wanted = [sorted(left)[axis] for axis in stored_axes(len(left))]
    mean, keep = site.output, bool(k["keepdim"])
    if not keep and left != wanted:
        mean = file.like(site.output, f"{site.node.name}.mean", [shape[axis] for axis in left])
    inputs = [site.inputs[0], file.integers(*axes)]
    file.op("MEAN", inputs, mean, "Reducer", keepDims=keep)
    if mean != site.output:
        turn = [left.index(axis) for axis in wanted]
        transposed(file, mean, file.shapes[mean], turn, site.output)


def _concat(site: Site) -> None:
    dim: Any = site.node.kwargs["dim"]
    axis = stored_axis(dim, len(site.program.shape(site.node)))
    site.op("CONCATENATION", "Concatenation", axis=axis)


def _interpolate(site: Site) -> None:
    height, width = site.file.shapes[site.output][1:3]
    inputs, corners = [site.inputs[0], site.file.integers(height, width)], False
    if site.node.kwargs["mode"] == "nearest":
        site.file.op("RESIZE_NEAREST_NEIGHBOR", inputs, site.output, "ResizeNearestNeighbor")
        return
    corners = bool(site.node.kwargs["align_corners"])
    site.file.op(
        "RESIZE_BILINEAR",
        inputs,
        site.output,
        "ResizeBilinear",
        alignCorners=corners,
        halfPixelCenters=not corners,
    )


def _pixel_shuffle(site: Site) -> None:
    """DEPTH_TO_SPACE on channels in block order; else the transpose that it stands for."""
    factor: Any = site.node.kwargs["upscale_factor"]
    if site.in_block_order:
        site.op("DEPTH_TO_SPACE", "DepthToSpace", blockSize=factor)
        return
    batch, height, width, channels = site.file.shapes[site.inputs[0]]
    split = (batch, height, width, channels // factor**2, factor, factor)
    _swapped(site, split, (0, 1, 4, 2, 5, 3))


def _pixel_unshuffle(site: Site) -> None:
    factor: Any = site.node.kwargs["downscale_factor"]
    if site.in_block_order:
        site.op("SPACE_TO_DEPTH", "SpaceToDepth", blockSize=factor)
        return
    batch, height, width, channels = site.file.shapes[site.inputs[0]]
    split = (batch, height // factor, factor, width // factor, factor, channels)
    _swapped(site, split, (0, 1, 3, 5, 2, 4))


def _swapped(site: Site, split: Sequence[int], axes: Sequence[int]) -> None:
    file, source, name = site.file, site.inputs[0], site.node.name
    parts = reshaped(file, source, file.like(source, f"{name}.split", split))
    turned = file.like(source, f"{name}.turned", [split[axis] for axis in axes])
    file.op("TRANSPOSE", [parts, file.integers(*axes)], turned, "Transpose")
    reshaped(file, turned, site.output)


def _cropped(site: Site, pairs: Sequence[tuple[int, int]]) -> int:
    """The operand without what negative amounts cut; the result itself if that is all there is."""
    file, source = site.file, site.inputs[0]
    begin = [max(-before, 0) for before, _ in pairs]
    end = [min(after, 0) for _, after in pairs]
    if not any((*begin, *end)):
        return source
    sizes = zip(file.shapes[source], begin, end, strict=True)
    shape = tuple(size - first + last for size, first, last in sizes)
    output = site.output
    if shape != file.shapes[output]:
        output = file.like(source, f"{site.node.name}.cropped", shape)
    corners = [file.integers(*values) for values in (begin, end, [1] * len(pairs))]
    whole = sum(1 << axis for axis, last in enumerate(end) if last == 0)
    return file.op("STRIDED_SLICE", [source, *corners], output, "StridedSlice", endMask=whole)


def _pad(site: Site) -> None:
    amounts: Any = site.node.kwargs["pad"]
    rank = len(site.program.shape(site.node))
    pairs = [(0, 0)] * rank
    for i in range(len(amounts) // 2):
        pairs[rank - 1 - i] = (amounts[2 * i], amounts[2 * i + 1])
    stored = [pairs[axis] for axis in stored_axes(rank)]
    source = _cropped(site, stored)
    if source == site.output:
        return
    corners = site.file.integers(*((max(before, 0), max(after, 0)) for before, after in stored))
    inputs, value = [source, corners], site.node.kwargs["value"]
    if site.node.kwargs["mode"] == "reflect":
        mode = schema.MirrorPadMode.REFLECT
        site.file.op("MIRROR_PAD", inputs, site.output, "MirrorPad", mode=mode)
    elif value:
        site.file.op("PADV2", [*inputs, site.number(float(value))], site.output, "PadV2")  # type: ignore[arg-type]
    else:
        site.file.op("PAD", inputs, site.output, "Pad")


def _reshape(site: Site) -> None:
    before, after = site.shape_of_operand(), site.program.shape(site.node)
    reshaped_value(site.file, site.inputs[0], before, after, site.output)


def _permute(site: Site) -> None:
    dims: Any = site.node.kwargs["dims"]
    rank = len(dims)
    axes = [stored_axis(dims[axis], rank) for axis in stored_axes(rank)]
    shape = stored_shape(site.shape_of_operand())
    transposed(site.file, site.inputs[0], shape, axes, site.output)


def _slice(site: Site) -> None:
    k: dict[str, Any] = dict(site.node.kwargs)
    shape = site.shape_of_operand()
    axis, size = stored_axis(k["dim"], len(shape)), shape[k["dim"]]
    start, end, step = slice(k["start"], k["end"], k["step"]).indices(size)
    begin, stop, strides = [0] * len(shape), list(stored_shape(shape)), [1] * len(shape)
    to_the_end = 0
    if site.file.is_open:  # ends that count from the end, and no size of an image
        start, end = (min(n, 2**31 - 1) for n in (k["start"] or 0, k["end"] or 2**31 - 1))
        to_the_end = sum(1 << other for other in range(len(shape)) if other != axis)
    begin[axis], stop[axis], strides[axis] = start, end, step
    corners = [site.file.integers(*values) for values in (begin, stop, strides)]
    inputs = [site.inputs[0], *corners]
    site.file.op("STRIDED_SLICE", inputs, site.output, "StridedSlice", endMask=to_the_end)


def _matmul(site: Site) -> None:
    """A product over the program's last two dimensions, which are stored elsewhere in an image."""
    file, plain = site.file, []
    for index, operand in zip(site.inputs, site.node.all_input_nodes, strict=False):
        shape = site.program.shape(operand)
        axes = inverse(stored_axes(len(shape)))
        if not moves_nothing(stored_shape(shape), axes):
            inner = file.like(index, f"{file.name(index)}.channels_first", shape)
            index = transposed(file, index, stored_shape(shape), axes, inner)
        plain.append(index)
    shape = site.program.shape(site.node)
    axes, output = stored_axes(len(shape)), site.output
    if not moves_nothing(shape, axes):
        output = file.like(site.output, f"{site.node.name}.channels_first", shape)
    file.op("BATCH_MATMUL", plain, output, "BatchMatMul")
    if output != site.output:
        transposed(file, output, shape, axes, site.output)


FORMS: dict[str, Form] = {
    "add": _absorbing("ADD", "Add", potScaleInt16=False),
    "sub": _absorbing("SUB", "Sub", potScaleInt16=False),
    "mul": _absorbing("MUL", "Mul"),
    "div": _plain("DIV", "Div"),
    "matmul": _matmul,
    "concat": _concat,
    "relu": _plain("RELU"),
    "clamp": _clamp,
    "sigmoid": _plain("LOGISTIC"),
    "tanh": _plain("TANH"),
    "rsqrt": _plain("RSQRT"),
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _plain("HARD_SWISH"),
    "silu": _silu,
    "gelu": _gelu,
    "softmax": _softmax,
    "instance_norm": _instance_norm,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "adaptive_avg_pool": adaptive_avg_pool,
    "mean": _mean,
    "interpolate": _interpolate,
    "interpolate_nearest": _interpolate,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "pad": _pad,
    "pad_value": _pad,
    "reshape": _reshape,
    "unsqueeze": _reshape,
    "permute": _permute,
    "slice": _slice,
    "foreign:abs": _plain("ABS"),
    "foreign:exp": _plain("EXP"),
    "foreign:log": _plain("LOG"),
    "foreign:neg": _plain("NEG"),
    "foreign:sqrt": _plain("SQRT"),
}
"""By canonical name. Layers with weights are in `layers`."""
