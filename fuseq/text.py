"""Stable text form of a program: what golden tests compare and what people read.

One line a node, in order: `%name = op(operands) attributes : dtype[shape]  # source`. Weights are
shown by shape, never by value, so the text of a graph does not change with training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from fuseq import ops
from fuseq.program import Program

_DTYPES = {torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.int64: "i64"}


def to_text(program: Program, *, sources: bool = False) -> str:
    """Text of a program.

    Args:
        program: any program; a quantized one shows each value's grid.
        sources: append `# file:line` to each line.
    """
    lines = [_line(program, node, sources) for node in program.graph.nodes]
    return "\n".join(lines) + "\n"


def _line(program: Program, node: fx.Node, sources: bool) -> str:
    if node.op == "output":
        return f"return {_show(node.args[0])}"
    attributes = attributes_text(program, node)
    operands = ", ".join(_show(arg) for arg in node.args)
    line = f"%{node.name} = {ops.name_of(program, node)}({operands})"
    if attributes:
        line += f" {attributes}"
    if "shape" in node.meta:
        dtype = _DTYPES.get(node.meta["dtype"], str(node.meta["dtype"]).removeprefix("torch."))
        line += f" : {dtype}[{','.join(map(str, program.shape(node)))}]"
    grid = program.quantization and program.quantization.grids.get(node.name)
    if grid:
        line += f" @ {grid}"
    source = program.source(node) if sources else ""
    return f"{line}  # {source}" if source else line


def attributes_text(program: Program, node: fx.Node) -> str:
    """Attributes of a node's op: `channels=3->8 kernel=3x3 padding=(1, 1)`."""
    return " ".join(f"{key}={_show(value)}" for key, value in _attributes(program, node))


def _attributes(program: Program, node: fx.Node) -> list[tuple[str, Any]]:
    if node.op != "call_module":
        return list(node.kwargs.items())
    module = program.get(node)
    match module:
        case nn.Conv2d() | nn.ConvTranspose2d():
            shown: dict[str, Any] = {"channels": f"{module.in_channels}->{module.out_channels}"}
            shown["kernel"] = "x".join(map(str, module.kernel_size))
            defaults = {"stride": (1, 1), "padding": (0, 0), "output_padding": (0, 0)}
            defaults |= {"dilation": (1, 1)}
            for name, default in defaults.items():
                if tuple(getattr(module, name)) != default:
                    shown[name] = tuple(getattr(module, name))
            if module.groups != 1:
                shown["groups"] = module.groups
            if module.bias is None:
                shown["bias"] = False
            return list(shown.items())
        case nn.Linear():
            return [("channels", f"{module.in_features}->{module.out_features}")]
        case nn.BatchNorm2d() | nn.BatchNorm1d():
            return [("eps", module.eps)]
        case _:
            return []


def _show(value: Any) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_show(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(_show(v) for v in value) + ")"
    if isinstance(value, int) and value >= 2**62:
        return "end"
    return f"{value:g}" if isinstance(value, float) else str(value)
