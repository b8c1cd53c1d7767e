"""`fuseq inspect`: what is in a model, an ONNX file or a bundle."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

import fuseq
from fuseq import ops
from fuseq.bundle import MANIFEST, read_bundle
from fuseq.cli.models import Source
from fuseq.cli.streams import Result
from fuseq.cli.tables import table
from fuseq.errors import FuseqError, first_line
from fuseq.text import to_text


def inspect(
    target: str,
    arguments: tuple[str, ...],
    inputs: tuple[str, ...],
    weights: Path | None,
    graph: bool,
) -> Result:
    """Count ops, and show the interface; with `graph` also each node.

    Raises:
        FuseqError: FQ013 for a file or bundle that cannot be read; for a model as `load_target`
            and `fuseq.capture` raise.
    """
    if (Path(target) / MANIFEST).is_file():
        return _bundle(Path(target))
    if target.endswith(".onnx"):
        return _onnx(Path(target), graph)
    return _model(Source(target, arguments, inputs, weights), graph)


def _model(source: Source, graph: bool) -> Result:
    target = source.load()
    program = fuseq.capture(target.model, target.example_inputs)
    counts = Counter(ops.name_of(program, node) for node in program.graph.nodes)
    for own in ("input", "output", "constant"):
        counts.pop(own, None)
    parameters = sum(p.numel() for p in program.module.parameters())
    document = {
        "kind": "model",
        "capture": program.origin.front_end,
        "ops": dict(counts.most_common()),
        "parameters": parameters,
        "inputs": _named(program.input_names, map(program.shape, program.inputs())),
        "outputs": _named(program.output_names, map(program.shape, program.outputs())),
        "notes": list(program.origin.notes),
    }
    return _result(document, to_text(program, sources=True) if graph else None)


def _onnx(path: Path, graph: bool) -> Result:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
    except (OSError, DecodeError) as error:
        raise FuseqError(
            "FQ013", f"cannot read '{path}'", why=first_line(error), fix="is it an ONNX file?"
        ) from error
    held = {tensor.name for tensor in model.graph.initializer}
    document = {
        "kind": "onnx",
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "ops": dict(Counter(node.op_type for node in model.graph.node).most_common()),
        "parameters": sum(math.prod(tensor.dims) for tensor in model.graph.initializer),
        "inputs": [_value(v) for v in model.graph.input if v.name not in held],
        "outputs": [_value(v) for v in model.graph.output],
    }
    return _result(document, onnx.printer.to_text(model.graph) if graph else None)


def _bundle(path: Path) -> Result:
    bundle = read_bundle(path)
    changed = bundle.changed_files()
    document = {"kind": "bundle", "manifest": bundle.manifest, "changed": changed}
    files = table("file", "kind", "sha256", "")
    for entry in bundle.manifest["files"]:
        mark = "CHANGED" if entry["path"] in changed else ""
        files.add_row(entry["path"], entry["kind"], entry["sha256"][:16], mark)
    passes = [f"{step['name']} ({step['rewrites']})" for step in bundle.manifest["passes"]]
    shown: list[RenderableType] = [f"backend {bundle.manifest['backend']}", files]
    shown.append(f"passes: {', '.join(passes)}")
    for kind in ("inputs", "outputs"):
        shown += [f"{kind[:-1]} {_described(entry)}" for entry in bundle.manifest[kind]]
    for key in ("float_islands", "runtime_float_ops"):
        shown.append(f"{key.replace('_', ' ')}: {', '.join(bundle.manifest[key] or ()) or 'none'}")
    return Result(document, Group(*shown), passed=not changed)


def _described(entry: Mapping[str, Any]) -> str:
    shown = f"{entry['name']}: {entry['dtype']} {'x'.join(map(str, entry['shape']))}"
    if "grid" in entry:
        grid = entry["grid"]
        shown += f", {grid['dtype']} scale {grid['scale']:.6g} zero point {grid['zero_point']}"
    return shown


def _result(document: dict[str, Any], graph: str | None) -> Result:
    counts = table("op", "count")
    for name, count in document["ops"].items():
        counts.add_row(name, str(count))
    shown: list[RenderableType] = [counts, f"parameters: {document['parameters']:,}"]
    for kind in ("inputs", "outputs"):
        shown += [f"{kind[:-1]} {v['name']}: {v['shape']}" for v in document[kind]]
    shown += [f"note: {note}" for note in document.get("notes", ())]
    if graph is not None:
        document, shown = {**document, "graph": graph}, [*shown, "", graph]
    return Result(document, Group(*shown))


def _named(names: tuple[str, ...], shapes: Iterable[tuple[int, ...]]) -> list[dict[str, Any]]:
    return [{"name": name, "shape": list(shape)} for name, shape in zip(names, shapes, strict=True)]


def _value(value: Any) -> dict[str, Any]:
    dims = value.type.tensor_type.shape.dim
    return {"name": value.name, "shape": [d.dim_param or d.dim_value for d in dims]}
