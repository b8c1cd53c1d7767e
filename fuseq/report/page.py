"""The page: everything found about a bundle, put into `page.html`.

The template escapes every value it is given; drawings come as `Markup`, made by code that escapes.
The page allows itself no network, and no script but its own, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from fuseq.bundle import Bundle
from fuseq.lineage import Lineage
from fuseq.outline import OutlineNode
from fuseq.report import words
from fuseq.report.charts import channels_svg, histogram_svg
from fuseq.report.drawing import LEVELS, Drawing, Shade, draw, level, style
from fuseq.report.images import AMPLIFIED, Picture, Strip, is_image, picture, span_of, strip
from fuseq.report.measured_values import MeasuredValue
from fuseq.report.runs import Outputs
from fuseq.report.verdict import Verdict

GENERATOR = "fuseq report"
"""Stands in the first line of a page, so that a page is known for one of ours."""

TOP_VALUES = 5

FULL_BAR = 60.0
"""SQNR in dB at which a bar is full: beyond it nobody sees a difference."""


@dataclass(frozen=True)
class Findings:
    """What a page is made from.

    Attributes:
        bundle: intact.
        model: name of the model, or the empty string.
        lineage: of its graph.
        verdict: of its checks.
        inputs: that values and outputs were computed from.
        inputs_are: what they are, in words.
        outputs: in float and of the shipped file.
        values: on grids, lowest SQNR first; empty for a float bundle.
        absorbed: nodes without a value of their own -> the one that is computed with theirs.
    """

    bundle: Bundle
    model: str
    lineage: Lineage
    verdict: Verdict
    inputs: tuple[np.ndarray, ...]
    inputs_are: str
    outputs: Outputs
    values: Sequence[MeasuredValue]
    absorbed: Mapping[str, str]


def render(findings: Findings) -> str:
    """The whole page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= words.FILTERS
    script = _text("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    manifest = findings.bundle.manifest
    before, after = _graphs(findings)
    return environment.get_template("page.html").render(
        generator=GENERATOR,
        style=Markup(_text("page.css") + style()),
        script=Markup(script),
        script_hash=digest,
        name=findings.bundle.path.resolve().name,
        model=findings.model,
        manifest=manifest,
        verdict=findings.verdict,
        inputs_are=findings.inputs_are,
        outputs=findings.outputs,
        amplified=AMPLIFIED,
        pictures=_pictures(findings),
        strips=_strips(findings),
        tables=_tables(findings),
        before=before,
        after=after,
        scale=_scale(),
        values=_values(findings),
        regions=findings.lineage.regions,
        refusals=findings.lineage.refusals,
        costs=_costs(findings.lineage),
        sizes=(sizes := _sizes(findings.bundle)),
        bytes={entry["kind"]: entry["bytes"] for entry in sizes},
    )


def _text(name: str) -> str:
    return files("fuseq.report").joinpath(name).read_text(encoding="utf-8")


def _graphs(findings: Findings) -> tuple[Drawing, Drawing]:
    """The captured and the lowered graph; what was fused has the colour of what it became."""
    decibels = {v.statistics.node: v.statistics.sqnr_db for v in findings.values}
    anchors = {v.statistics.node: _anchor(i) for i, v in enumerate(findings.values)}
    grids = {v.statistics.node: v.grid for v in findings.values}
    lineage, first = findings.lineage, findings.verdict.first_divergence
    layers = {node.module: node.name for node in lineage.lowered if node.module}
    became = {name: r.module for r in lineage.regions for name in r.nodes if r.module in layers}
    refused = {refusal.node: refusal for refusal in lineage.refusals}
    shared = {node.name for node in lineage.lowered}

    def shade(name: str, value: str, group: str, lines: Sequence[str]) -> Shade:
        wrong = first is not None and first.node == name
        more = ("first value that differs",) if wrong else ()
        grid = (grids[name],) if name == value and name in grids else ()
        return Shade(
            sqnr_db=decibels.get(value),
            of=value if value != name else "",
            group=group,
            lines=(*grid, *lines, *more),
            anchor=anchors.get(value, ""),
            wrong=wrong,
        )

    absorbed = findings.absorbed
    before, after = {}, {}
    for node in lineage.captured:
        region = became.get(node.name, "")
        value = layers[region] if region else node.name if node.name in shared else ""
        lines = [f"becomes part of {region}"] if region else []
        if node.name in refused:
            lines.append(f"not fused: {refused[node.name].code}")
        value = absorbed.get(value, value)
        before[node.name] = shade(node.name, value, region or node.name, lines)
    parts = Counter(became.values())
    for node in lineage.lowered:
        count = parts.get(node.module, 0)
        lines = [f"was {count} nodes"] if count > 1 else []
        value = absorbed.get(node.name, node.name)
        if value != node.name:
            lines.append(f"computed together with {value}")
        group = node.module if count else node.name
        after[node.name] = shade(node.name, value, group, lines)
    return (
        draw(lineage.captured, before, label="the graph as it was captured"),
        draw(lineage.lowered, after, label="the graph that was lowered"),
    )


def _anchor(index: int) -> str:
    return f"value-{index}"


def _scale() -> list[tuple[str, str]]:
    """Class and meaning of each colour."""
    middle = [f"{low:g} to {high:g}" for low, high in pairwise(LEVELS)]
    names = [f"below {LEVELS[0]:g} dB", *middle, f"{LEVELS[-1]:g} dB and more"]
    return [(f"level-{index}", name) for index, name in enumerate(names)]


def _values(findings: Findings) -> list[dict[str, Any]]:
    nodes = {node.name: node for node in findings.lineage.lowered}
    return [
        {
            "anchor": _anchor(index),
            "node": nodes.get(value.statistics.node),
            "level": level(value.statistics.sqnr_db),
            "share": min(max(value.statistics.sqnr_db / FULL_BAR, 0.01), 1.0),
            "histogram": histogram_svg(value.histogram),
            "weights": channels_svg(value.channels) if value.channels else None,
            "value": value,
        }
        for index, value in enumerate(findings.values)
    ]


def _pictures(findings: Findings) -> list[tuple[str, Picture]]:
    names = [entry["name"] for entry in findings.bundle.manifest["inputs"]]
    return [
        (name, picture(x, span_of(x)))
        for name, x in zip(names, findings.inputs, strict=True)
        if is_image(x)
    ]


def _strips(findings: Findings) -> list[Strip]:
    outputs, inputs = findings.outputs, [x for x in findings.inputs if is_image(x)]
    names = [entry["name"] for entry in findings.bundle.manifest["outputs"]]
    shipped = outputs.shipped or (None,) * len(outputs.real)
    return [
        strip(name, real, other, inputs)
        for name, real, other in zip(names, outputs.real, shipped, strict=True)
        if is_image(real)
    ]


def _tables(findings: Findings) -> list[tuple[str, list[tuple[str, float, float | None]]]]:
    """Largest values of each output that is no image: place, in float, as shipped."""
    outputs = findings.outputs
    names = [entry["name"] for entry in findings.bundle.manifest["outputs"]]
    shipped = outputs.shipped or (None,) * len(outputs.real)
    tables = []
    for name, real, other in zip(names, outputs.real, shipped, strict=True):
        if is_image(real) or not real.size:
            continue
        first = real[0] if real.ndim > 1 else real
        rest = None if other is None else other.reshape(-1)
        order = np.argsort(-first, axis=None, kind="stable")[:TOP_VALUES].tolist()
        rows = [
            (
                ", ".join(map(str, np.unravel_index(i, first.shape))),
                float(first.flat[i]),
                None if rest is None else float(rest[i]),
            )
            for i in order
        ]
        tables.append((name, rows))
    return tables


def _costs(lineage: Lineage) -> list[dict[str, Any]]:
    """Number, MACs and parameters of each op, before and after."""
    sides: list[Mapping[str, list[OutlineNode]]] = []
    for nodes in (lineage.captured, lineage.lowered):
        by_op: dict[str, list[OutlineNode]] = {}
        for node in nodes:
            by_op.setdefault(node.op, []).append(node)
        sides.append(by_op)
    found = [
        {
            "op": op,
            "count": [len(side.get(op, ())) for side in sides],
            "macs": [sum(n.macs for n in side.get(op, ())) for side in sides],
            "parameters": [sum(n.parameters for n in side.get(op, ())) for side in sides],
        }
        for op in {op: None for side in sides for op in side}
        if op != "input"
    ]
    return sorted(found, key=lambda row: (-max(row["macs"]), -max(row["count"]), row["op"]))


def _sizes(bundle: Bundle) -> list[dict[str, Any]]:
    return [
        {**entry, "bytes": (bundle.path / entry["path"]).stat().st_size}
        for entry in bundle.manifest["files"]
    ]
