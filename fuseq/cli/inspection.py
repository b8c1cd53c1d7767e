"""`fuseq inspect`: what is in a model, an ONNX file or a bundle."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from fuseq.bundle import MANIFEST, read_bundle
from fuseq.cli.facts import document, find_facts
from fuseq.cli.facts_text import facts_text
from fuseq.cli.models import Source, show_warnings
from fuseq.cli.progress import progress
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
    quiet: bool,
) -> Result:
    """Say what can be said without data; with `graph` also each node.

    Raises:
        FuseqError: FQ013 for a file or bundle that cannot be read; for a model as `load_target`
            and `fuseq.capture` raise.
    """
    if os.path.isfile(Path(target) / MANIFEST):
        return _bundle(Path(target))
    if target.endswith(".onnx"):
        return _onnx(Path(target), graph)
    return _model(Source(target, arguments, inputs, weights), graph, quiet)


def _model(source: Source, graph: bool, quiet: bool) -> Result:
    with progress(quiet, {}) as report:
        report("load", 0)
        facts = find_facts(source.load(), report)
    found, shown = document(facts), facts_text(facts)
    show_warnings(found["warnings"])
    if graph:
        found["graph"] = to_text(facts.program, sources=True)
        shown += ["", found["graph"]]
    return Result(found, Group(*shown))


def _onnx(path: Path, graph: bool) -> Result:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
    except (OSError, DecodeError) as error:
        raise FuseqError(
            "FQ013", f"cannot read '{path}'", why=first_line(error), fix="is it an ONNX file?"
        ) from error
    if not model.HasField("graph"):
        raise FuseqError("FQ013", f"'{path}' holds no graph", fix="is it an ONNX file?")
    held = {tensor.name for tensor in model.graph.initializer}
    found = {
        "kind": "onnx",
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "ops": dict(Counter(node.op_type for node in model.graph.node).most_common()),
        "parameters": sum(math.prod(tensor.dims) for tensor in model.graph.initializer),
        "inputs": [_value(v) for v in model.graph.input if v.name not in held],
        "outputs": [_value(v) for v in model.graph.output],
    }
    return _result(found, onnx.printer.to_text(model.graph) if graph else None)


def _bundle(path: Path) -> Result:
    bundle = read_bundle(path)
    changed = bundle.changed_files()
    found = {"kind": "bundle", "manifest": bundle.manifest, "changed": changed}
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
    return Result(found, Group(*shown), passed=not changed)


def _described(entry: Mapping[str, Any]) -> str:
    shown = f"{entry['name']}: {entry['dtype']} {'x'.join(map(str, entry['shape']))}"
    if "grid" in entry:
        grid = entry["grid"]
        shown += f", {grid['dtype']} scale {grid['scale']:.6g} zero point {grid['zero_point']}"
    return shown


def _result(found: dict[str, Any], graph: str | None) -> Result:
    counts = table("op", "count")
    for name, count in found["ops"].items():
        counts.add_row(name, str(count))
    shown: list[RenderableType] = [counts, f"parameters: {found['parameters']:,}"]
    for kind in ("inputs", "outputs"):
        shown += [f"{kind[:-1]} {v['name']}: {v['shape']}" for v in found[kind]]
    if graph is not None:
        found, shown = {**found, "graph": graph}, [*shown, "", graph]
    return Result(found, Group(*shown))


def _value(value: Any) -> dict[str, Any]:
    dims = value.type.tensor_type.shape.dim
    return {"name": value.name, "shape": [d.dim_param or d.dim_value for d in dims]}
