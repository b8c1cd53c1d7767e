"""TFLite form of the layers with weights: convolutions, transposed convolutions, linear layers.

Weights are stored as the kernels read them: `(O, kh, kw, I)`, depthwise ones `(1, kh, kw, O)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn

from fuseq.backends.tflite.arrangement import block_order
from fuseq.backends.tflite.file import Array, File
from fuseq.backends.tflite.site import NO_ACTIVATION
from fuseq.backends.tflite.windows import padded
from fuseq.quant.grid import Grid, bias_grid
from fuseq.quant.solve import Layer, output_axis


@dataclass(frozen=True)
class Weights:
    """Weight and bias of a layer in the program's dimensions, and their grids if quantized."""

    name: str
    weight: Array
    bias: Array | None
    weight_grid: Grid | None = None
    bias_grid: Grid | None = None


@dataclass(frozen=True)
class Stored:
    """How a constant lies in the file, for readers who want it as the program has it.

    Attributes:
        axes: dimensions of the program in the order in which they are stored.
        output_block: factor of the block order of the output channels, or 0.
        input_block: the same for the input channels.
        output_axis: dimension of the program that runs over the output channels.
        shape: in the program, where the file may have more dimensions.
    """

    axes: tuple[int, ...]
    output_block: int = 0
    input_block: int = 0
    output_axis: int = 0
    shape: tuple[int, ...] | None = None


def write_layer(
    file: File,
    layer: Layer,
    weights: Weights,
    source: int,
    output: int,
    input_block: int,
    output_block: int,
    fused: int = NO_ACTIVATION,
) -> dict[str, Stored]:
    """Write a layer; returns how its constants are stored, by name.

    Args:
        file: to write to.
        layer: its geometry.
        weights: what it multiplies with and adds.
        source: tensor of the input.
        output: tensor of the result.
        input_block: factor of the block order of the input's channels, or 0.
        output_block: the same for the result.
        fused: activation of the schema that the layer computes.
    """
    depthwise = isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels
    axes = {nn.Linear: (0, 1), nn.ConvTranspose2d: (1, 2, 3, 0)}.get(type(layer), (0, 2, 3, 1))
    if depthwise:
        axes = (1, 2, 3, 0)
    array, weight_grid = weights.weight, weights.weight_grid
    channels = output_axis(layer)
    if weights.bias is None:  # kernels want one
        bias, added = _zero_bias(file, source, array.shape[channels], weight_grid)
    else:
        bias, added = weights.bias, weights.bias_grid
    if input_block:
        array = np.take(array, block_order(array.shape[1 - channels], input_block), 1 - channels)
    if output_block:
        order = block_order(array.shape[channels], output_block)
        array, bias = np.take(array, order, channels), bias[order]
        weight_grid, added = _ordered(weight_grid, order), _ordered(added, order)
    if weight_grid is not None:
        axis = axes.index(channels)
        weight_grid = Grid(weight_grid.scale, weight_grid.zero_point, weight_grid.dtype, axis)
    options: dict[str, Any] = {"fusedActivationFunction": fused}
    if depthwise and file.dtypes[source] == "int16":
        bias = bias.astype(np.int64)
    elif file.dtypes[source] == "int16":
        options["quantizedBiasType"] = schema.TensorType.INT32
    names = (f"{weights.name}.weight", f"{weights.name}.{'no_' * (weights.bias is None)}bias")
    parameters = [
        file.constant(names[0], array.transpose(axes), weight_grid),
        file.constant(names[1], bias, added),
    ]
    if isinstance(layer, nn.Linear):
        version = 12 if _per_channel(weight_grid) else None
        operands = [source, *parameters]
        file.op("FULLY_CONNECTED", operands, output, "FullyConnected", version=version, **options)
    elif isinstance(layer, nn.ConvTranspose2d):
        _transposed(file, layer, [parameters[0], source, parameters[1]], output, options)
    else:
        _convolution(file, layer, [source, *parameters], output, depthwise, options)
    stored = {names[0]: Stored(axes, output_block, input_block, channels)}
    if weights.bias is not None:
        stored[names[1]] = Stored((0,), output_block)
    return stored


def _zero_bias(
    file: File, source: int, channels: int, weight_grid: Grid | None
) -> tuple[Array, Grid | None]:
    grid = file.grids[source]
    if weight_grid is None or grid is None:
        return np.zeros(channels, np.float32), None
    zeros = torch.zeros(channels)
    return np.zeros(channels, np.int32), bias_grid(grid, weight_grid, zeros)


def _ordered(grid: Grid | None, order: npt.NDArray[np.int64]) -> Grid | None:
    if grid is None or grid.scale.numel() == 1:
        return grid
    return Grid(grid.scale[order], grid.zero_point[order], grid.dtype, grid.axis)


def _per_channel(grid: Grid | None) -> bool:
    return grid is not None and grid.scale.numel() > 1


def _convolution(
    file: File,
    conv: nn.Conv2d,
    inputs: Sequence[int],
    output: int,
    depthwise: bool,
    more: Mapping[str, Any],
) -> None:
    assert not isinstance(conv.padding, str)
    name = file.name(output)
    source, padding = padded(
        file,
        name,
        inputs[0],
        output,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
    )
    options: dict[str, Any] = {
        "padding": padding,
        "strideH": conv.stride[0],
        "strideW": conv.stride[1],
        "dilationHFactor": conv.dilation[0],
        "dilationWFactor": conv.dilation[1],
        **more,
    }
    operands = [source, *inputs[1:]]
    if depthwise:
        options["depthMultiplier"] = conv.out_channels // conv.in_channels
        file.op("DEPTHWISE_CONV_2D", operands, output, "DepthwiseConv2D", **options)
    else:
        file.op("CONV_2D", operands, output, "Conv2D", **options)


def _transposed(
    file: File,
    layer: nn.ConvTranspose2d,
    inputs: Sequence[int],
    output: int,
    more: Mapping[str, Any],
) -> None:
    """The whole of what the kernel reaches, cut to torch's window where that has padding."""
    weight, source, bias = inputs
    batch, height, width, _ = file.shapes[source]
    kernel, stride = layer.kernel_size, layer.stride
    full = (
        batch,
        (height - 1) * stride[0] + kernel[0],
        (width - 1) * stride[1] + kernel[1],
        layer.out_channels,
    )
    whole = output
    if full != file.shapes[output]:
        whole = file.like(output, f"{file.name(output)}.whole", full)
    file.op(
        "TRANSPOSE_CONV",
        [file.integers(*full), weight, source, bias],
        whole,
        "TransposeConv",
        version=5 if "quantizedBiasType" in more else 3,
        padding=schema.Padding.VALID,
        strideH=stride[0],
        strideW=stride[1],
        **more,
    )
    if whole != output:
        assert not isinstance(layer.padding, str)
        begin = (0, *layer.padding, 0)
        end = [b + n for b, n in zip(begin, file.shapes[output], strict=True)]
        corners = [file.integers(*v) for v in (begin, end, (1, 1, 1, 1))]
        file.op("STRIDED_SLICE", [whole, *corners], output, "StridedSlice")


def as_metadata(stored: Mapping[str, Stored]) -> dict[str, Any]:
    """JSON form, without what has its default."""
    return {
        name: {key: value for key, value in asdict(how).items() if key == "axes" or value}
        | ({} if how.shape is None else {"shape": how.shape})
        for name, how in stored.items()
    }
