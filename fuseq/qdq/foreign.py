"""Ops outside our table, written by torch's own ONNX exporter one node at a time.

The node is wrapped in a graph of its own, exported, and its ONNX nodes are copied over under the
node's name. What the exporter cannot write is a refusal.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Sequence
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import fx, nn

from fuseq.program import Program
from fuseq.qdq.graph import Graph
from fuseq.quiet import quiet_streams

EXPORTER_OPSET = 18


def export_node(program: Program, node: fx.Node) -> onnx.ModelProto:
    """ONNX model of a single node, with one input per data operand.

    Raises:
        Exception: whatever torch's exporter raises for an op it does not know.
    """
    operands = node.all_input_nodes
    graph, root = fx.Graph(), nn.Module()
    copies = {operand: graph.placeholder(f"x{i}") for i, operand in enumerate(operands)}
    copied = graph.node_copy(node, lambda operand: copies[operand])
    if node.op == "call_module":
        # The exporter switches what it is given to training mode and back.
        root.add_module("layer", copy.deepcopy(program.get(node)))
        copied.target = "layer"
    graph.output(copied)
    examples = tuple(_example(program, operand) for operand in operands)
    axes = {
        f"x{i}": {d: f"x{i}_{d}" for d in range(x.dim())}
        for i, (x, operand) in enumerate(zip(examples, operands, strict=True))
        if program.origin.dynamic and operand.op != "get_attr"
    }
    buffer = io.BytesIO()
    # On failure the exporter dumps its graph.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), quiet_streams(1, 2):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            fx.GraphModule(root, graph).eval(),
            examples,
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=EXPORTER_OPSET,
            input_names=[f"x{i}" for i in range(len(examples))],
            output_names=["y"],
            dynamic_axes=axes,
        )
    return onnx.load_model_from_string(buffer.getvalue())


def inline_node(graph: Graph, program: Program, node: fx.Node, inputs: Sequence[str]) -> str:
    """Write a foreign node into a graph; returns the name of its result."""
    body = export_node(program, node).graph
    names: dict[str, str] = {f"x{i}": name for i, name in enumerate(inputs)}
    for tensor in body.initializer:
        names[tensor.name] = graph.initializer(
            f"{node.name}.{_short(tensor.name)}", numpy_helper.to_array(tensor)
        )
    for item in body.node:
        for output in item.output:
            names[output] = graph.unique(
                node.name if output == "y" else f"{node.name}.{_short(output)}"
            )
        copied = onnx.NodeProto()
        copied.CopyFrom(item)
        copied.name = names[item.output[0]]
        copied.ClearField("doc_string")
        copied.input[:] = [names[i] if i else "" for i in item.input]
        copied.output[:] = [names[o] for o in item.output]
        graph.nodes.append(copied)
    return names["y"]


def _short(name: str) -> str:
    return name.strip("/").replace("/", "_").replace("::", "_")


def _example(program: Program, node: fx.Node) -> Any:
    if "shape" not in node.meta:
        raise TypeError(f"operand `{node.name}` is no tensor")
    return torch.rand(program.shape(node)).to(node.meta["dtype"])
