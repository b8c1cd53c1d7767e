"""ONNX form of each canonical op, in float. Ops not listed here go through `foreign`.

Each rule gets the graph, the program, the node and the tensor names of the node's data operands,
and returns the name of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import fx, nn

from fuseq.program import Program
from fuseq.qdq import foreign
from fuseq.qdq.graph import Graph

Rule: TypeAlias = Callable[[Graph, Program, fx.Node, Sequence[str]], str]


def _pads(padding: Sequence[int]) -> list[int]:
    return [*padding, *padding]


def conv_attributes(conv: nn.Conv2d | nn.ConvTranspose2d) -> dict[str, Any]:
    """Attributes of ONNX Conv or ConvTranspose for a torch layer."""
    assert not isinstance(conv.padding, str)
    attributes: dict[str, Any] = {
        "kernel_shape": list(conv.kernel_size),
        "strides": list(conv.stride),
        "pads": _pads(conv.padding),
        "dilations": list(conv.dilation),
        "group": conv.groups,
    }
    if isinstance(conv, nn.ConvTranspose2d):
        attributes["output_padding"] = list(conv.output_padding)
    return attributes


def _plain(op: str, **attributes: Any) -> Rule:
    def rule(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
        return graph.node(op, inputs, node.name, **attributes)

    return rule


def _from_kwargs(op: str, **names: str) -> Rule:
    """A rule whose attributes are the node's keywords, renamed."""

    def rule(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
        attributes: dict[str, Any] = {
            onnx_name: node.kwargs[name] for onnx_name, name in names.items()
        }
        return graph.node(op, inputs, node.name, **attributes)

    return rule


def _clamp(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    bounds = [node.kwargs["min"], node.kwargs["max"]]
    names = ["" if b is None else graph.constant(np.float32(b)) for b in bounds]  # type: ignore[arg-type]
    return graph.node("Clip", [*inputs, *names], node.name)


def _instance_norm(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    norm = program.get(node)
    assert isinstance(norm, nn.InstanceNorm2d)
    parameters = [
        graph.initializer(f"{node.target}.{name}", values)
        for name, values in zip(("weight", "bias"), norm_parameters(norm), strict=True)
    ]
    return graph.node("InstanceNormalization", [*inputs, *parameters], node.name, epsilon=norm.eps)


def norm_parameters(
    norm: nn.InstanceNorm2d,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Weight and bias, float32 `[C]`; those of a norm without are one and zero."""
    if norm.weight is None:
        return np.ones(norm.num_features, "f4"), np.zeros(norm.num_features, "f4")
    return norm.weight.detach().numpy(), norm.bias.detach().numpy()


def _prelu(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    """The slopes get the rank of the input, for channels are dimension 1 of it."""
    slopes = graph.initializer(f"{node.target}.weight", slopes_of(program, node))
    return graph.node("PRelu", [*inputs, slopes], node.name)


def slopes_of(program: Program, node: fx.Node) -> npt.NDArray[np.float32]:
    """Slopes of a PReLU, float32 `[C, 1, ...]`, to be broadcast from the last dimension."""
    layer = program.get(node)
    assert isinstance(layer, nn.PReLU)
    slopes: npt.NDArray[np.float32] = layer.weight.detach().numpy()
    return slopes.reshape(-1, *[1] * (len(program.shape(node)) - 2))


def _gelu(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    if graph.opset < 20:
        return foreign.inline_node(graph, program, node, inputs)
    return graph.node("Gelu", inputs, node.name, approximate=node.kwargs["approximate"])


def _rsqrt(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    """A division rounds correctly on every machine; a Reciprocal may be approximated."""
    root = graph.node("Sqrt", inputs, f"{node.name}.root")
    return graph.node("Div", [graph.constant(np.float32(1)), root], node.name)


def _silu(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    gate = graph.node("Sigmoid", inputs, f"{node.name}.gate")
    return graph.node("Mul", [inputs[0], gate], node.name)


def _max_pool(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    k: dict[str, Any] = dict(node.kwargs)
    return graph.node(
        "MaxPool",
        inputs,
        node.name,
        kernel_shape=list(k["kernel_size"]),
        strides=list(k["stride"]),
        pads=_pads(k["padding"]),
        dilations=list(k["dilation"]),
        ceil_mode=int(k["ceil_mode"]),
    )


def _avg_pool(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    k: dict[str, Any] = dict(node.kwargs)
    return graph.node(
        "AveragePool",
        inputs,
        node.name,
        kernel_shape=list(k["kernel_size"]),
        strides=list(k["stride"]),
        pads=_pads(k["padding"]),
        ceil_mode=int(k["ceil_mode"]),
        # Without padding both mean the same, and the integer kernel is wrong at windows that hang
        # over the edge (ceil_mode) if told to count them.
        count_include_pad=int(k["count_include_pad"] and any(k["padding"])),
    )


def _adaptive_avg_pool(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    """Average pool where all bins have one size, else `rows @ x @ columns` with bin matrices."""
    sizes = program.shape(node.all_input_nodes[0])[2:]
    outputs: Any = node.kwargs["output_size"]
    if all(n % out == 0 for n, out in zip(sizes, outputs, strict=True)):
        kernel = [n // out for n, out in zip(sizes, outputs, strict=True)]
        return graph.node(
            "AveragePool", inputs, node.name, kernel_shape=kernel, strides=kernel, pads=[0] * 4
        )
    rows, columns = (graph.constant(_bins(n, out)) for n, out in zip(sizes, outputs, strict=True))
    averaged = graph.node("MatMul", [rows, *inputs], f"{node.name}.rows")
    turned = graph.node("Transpose", [columns], f"{node.name}.columns", perm=[1, 0])
    return graph.node("MatMul", [averaged, turned], node.name)


def _bins(size: int, outputs: int) -> npt.NDArray[np.float32]:
    """Averaging matrix `[outputs, size]`: bin i is `floor(i n / m)` up to `ceil((i + 1) n / m)`."""
    matrix = np.zeros((outputs, size), dtype=np.float32)
    for i in range(outputs):
        start, end = i * size // outputs, -(-(i + 1) * size // outputs)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


def _mean(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    dims: Any = node.kwargs["dim"]
    keep = bool(node.kwargs["keepdim"])
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if dims == (2, 3) and len(program.shape(source)) == 4:
        pooled = graph.node(
            "GlobalAveragePool", inputs, node.name if keep else f"{node.name}.pooled"
        )
        return pooled if keep else graph.node("Flatten", [pooled], node.name)
    return graph.node("ReduceMean", [*inputs, graph.integers(*dims)], node.name, keepdims=int(keep))


def _pixel_shuffle(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    factor = node.kwargs["upscale_factor"]
    return graph.node("DepthToSpace", inputs, node.name, blocksize=factor, mode="CRD")


def _pixel_unshuffle(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    """SpaceToDepth puts the block before the channel; torch puts the channel first."""
    factor: Any = node.kwargs["downscale_factor"]
    channels = program.shape(node)[1] // factor**2
    order = np.arange(channels * factor**2).reshape(factor**2, channels).T.reshape(-1)
    blocks = graph.node("SpaceToDepth", inputs, f"{node.name}.blocks", blocksize=factor)
    return graph.node("Gather", [blocks, graph.constant(order.astype(np.int64))], node.name, axis=1)


def _permute(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    dims: Any = node.kwargs["dims"]
    return graph.node("Transpose", inputs, node.name, perm=list(dims))


def _unsqueeze(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    dim: Any = node.kwargs["dim"]
    return graph.node("Unsqueeze", [*inputs, graph.integers(dim)], node.name)


FLOAT_OPS: dict[str, Rule] = {
    "add": _plain("Add"),
    "sub": _plain("Sub"),
    "mul": _plain("Mul"),
    "div": _plain("Div"),
    "matmul": _plain("MatMul"),
    "instance_norm": _instance_norm,
    "relu": _plain("Relu"),
    "sigmoid": _plain("Sigmoid"),
    "tanh": _plain("Tanh"),
    "rsqrt": _rsqrt,
    "hardswish": _plain("HardSwish"),
    "hardsigmoid": _plain("HardSigmoid", alpha=1 / 6, beta=0.5),
    "prelu": _prelu,
    "gelu": _gelu,
    "leaky_relu": _from_kwargs("LeakyRelu", alpha="negative_slope"),
    "softmax": _from_kwargs("Softmax", axis="dim"),
    "concat": _from_kwargs("Concat", axis="dim"),
    "clamp": _clamp,
    "silu": _silu,
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "adaptive_avg_pool": _adaptive_avg_pool,
    "mean": _mean,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "permute": _permute,
    "unsqueeze": _unsqueeze,
}
"""Ops without parameters of their own; layers with weights are in `emit`."""
