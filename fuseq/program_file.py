"""A program as one safetensors file: graph, weights, grids and integers, without the user's code.

The file's tensors are the weights (`weight/<path>`), the example inputs (`input/<index>`) and the
quantization table (`scale/<name>`, `zero_point/<name>`, `integers/<name>`); its one text,
`program`, is the rest as JSON. Nothing in it is code: a file that nobody vouches for can be read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, fx, nn

from fuseq.errors import FuseqError, first_line
from fuseq.graph_form import NotPlain, node_form, plain, read_node, value_of
from fuseq.program import Origin, PassRecord, Program
from fuseq.quant.grid import LIMITS, Grid
from fuseq.quant.profile import Profile
from fuseq.quant.table import QuantizationTable
from fuseq.shapes import propagate

FORMAT = 1


def write_program(program: Program, file: Path) -> None:
    """Write a program: the same program gives the same bytes.

    What passes noted and measured is left out, and of source files all but their names.

    Args:
        program: float or quantized.
        file: to write.

    Raises:
        FuseqError: FQ014 for a program with a call that nobody else could repeat.
    """
    try:
        nodes = [node_form(program, node) for node in program.graph.nodes]
    except NotPlain as error:
        raise FuseqError(
            "FQ014",
            f"the program cannot be written to a file: {error}",
            why="it is neither an op of the vocabulary, nor a function or module of torch",
            fix="spell it with ops of torch; the other files of a bundle do without",
        ) from error
    about = {
        "format": FORMAT,
        "nodes": nodes,
        "input_names": program.input_names,
        "output_names": program.output_names,
        "name": type(program.origin.module).__name__,
        "front_end": program.origin.front_end,
        "dynamic": program.origin.dynamic,
        "notes": program.origin.notes,
        "history": [[record.name, record.rewrites] for record in program.history],
    }
    tensors = {f"input/{i}": x for i, x in enumerate(program.example_inputs)}
    tensors |= {f"weight/{name}": value for name, value in _weights(program).items()}
    table = program.quantization
    if table is not None:
        about["table"] = {
            "profile": plain(vars(table.profile)),
            "grids": {name: [grid.dtype, grid.axis] for name, grid in table.grids.items()},
            "integers": list(table.integers),
            "absorbed": dict(table.absorbed),
            "integer": sorted(table.integer),
        }
        tensors |= {f"scale/{name}": grid.scale for name, grid in table.grids.items()}
        tensors |= {f"zero_point/{name}": grid.zero_point for name, grid in table.grids.items()}
        tensors |= {f"integers/{name}": value for name, value in table.integers.items()}
    own = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    # Written by Python: what else cannot be written would be an error of the library's own.
    file.write_bytes(save(own, {"program": json.dumps(about, sort_keys=True)}))


def read_program(file: Path) -> Program:
    """A program from a file.

    Returns:
        The program that was written; `origin.module` is its own graph, because the user's module
        is not in the file.

    Raises:
        FuseqError: FQ013 for a file that is no program, or a damaged one.
    """
    try:
        with safe_open(file, framework="pt") as stored:
            about = json.loads((stored.metadata() or {})["program"])
            # Copied to memory of torch's own: sums may be added in another order elsewhere.
            tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}
        if about["format"] != FORMAT:
            raise NotPlain(f"format {about['format']}, this version reads {FORMAT}")
        return _program(about, tensors)
    except (
        *(OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError),
        *(RuntimeError, IndexError, FuseqError),
    ) as error:
        raise FuseqError(
            "FQ013",
            f"'{file}' is no program, or is damaged",
            why=first_line(error),
            fix="lower the model again",
        ) from error


def _weights(program: Program) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for node in program.graph.nodes:
        if node.op == "get_attr":
            found[str(node.target)] = program.constant(node)
        elif node.op == "call_module":
            module = program.get(node)
            own = {**module._parameters, **module._buffers}  # those of a path below are another's
            found |= {f"{node.target}.{name}": x for name, x in own.items() if x is not None}
    return found


class _Stored(nn.Module):
    """The module tree of a program that was read."""


def _program(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Program:
    weights = _under("weight/", tensors)
    # Its name is what reports call the model.
    root, graph = type(str(about["name"]), (_Stored,), {})(), fx.Graph()
    nodes: dict[str, fx.Node] = {}
    modules: dict[str, nn.Module] = {}
    for form in about["nodes"]:
        node, module = read_node(graph, form, nodes)
        nodes[node.name] = node
        if module is not None:
            modules[str(node.target)] = module
    for path in sorted(modules):  # one path may lie below another
        state = {name: weights[f"{path}.{name}"] for name in modules[path].state_dict()}
        modules[path].load_state_dict(state, assign=True)
        owner, last = _owner(root, path)
        owner.add_module(last, modules[path].requires_grad_(False))
    for form in about["nodes"]:
        if form["op"] == "get_attr":
            owner, last = _owner(root, form["target"])
            value = weights[form["target"]]
            if form["parameter"]:
                owner.register_parameter(last, nn.Parameter(value, requires_grad=False))
            else:
                owner.register_buffer(last, value)
    graph.lint()
    module = fx.GraphModule(root, graph, str(about["name"])).eval()
    inputs = tuple(_under("input/", tensors)[str(i)] for i in range(len(about["input_names"])))
    dynamic = tuple((int(i), int(d)) for i, d in about["dynamic"])
    program = Program(
        module,
        inputs,
        Origin(module, str(about["front_end"]), dynamic, tuple(map(str, about["notes"]))),
        tuple(map(str, about["input_names"])),
        tuple(map(str, about["output_names"])),
        tuple(PassRecord(str(name), int(rewrites)) for name, rewrites in about["history"]),
        _table(about["table"], tensors) if "table" in about else None,
    )
    propagate(program)
    return program


def _owner(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds what a path names, made if need be, and the path's last part."""
    *parts, last = path.split(".")
    for part in parts:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    return root, last


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _table(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> QuantizationTable:
    profile = value_of(about["profile"], {})
    known = {field.name for field in dataclasses.fields(Profile)}
    scales, points = _under("scale/", tensors), _under("zero_point/", tensors)
    grids = {}
    for name, (dtype, axis) in about["grids"].items():
        if dtype not in LIMITS:
            raise NotPlain(f"dtype {dtype} of a grid")
        grids[name] = Grid(scales[name], points[name], dtype, axis)
    integers = _under("integers/", tensors)
    return QuantizationTable(
        Profile(**{key: value for key, value in profile.items() if key in known}),
        grids,
        {name: integers[name] for name in about["integers"]},
        about["absorbed"],
        frozenset(about["integer"]),
    )
