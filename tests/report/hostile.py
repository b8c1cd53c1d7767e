"""Findings with a hostile text wherever a text from outside stands, all at once."""

from __future__ import annotations

import dataclasses
from typing import Any

from fuseq.affine.refusal import Refusal
from fuseq.bundle import Bundle
from fuseq.equivalence.result import Divergence
from fuseq.lineage import Lineage
from fuseq.report.page import Findings

HOSTILE = (
    "</script></style></title><script>window.injected = 1</script>"
    "<img src=x onerror='window.injected = 2'><svg onload=window.injected=3>\"'`{{7*7}}&amp;"
)


def replaced(value: Any) -> Any:
    """The same with every text replaced; kinds and such stay, as the code chooses them."""
    if isinstance(value, str):
        return HOSTILE
    if isinstance(value, dict):
        return {key: replaced(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(replaced(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: replaced(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def hostile_findings(findings: Findings) -> Findings:
    """The same findings with names, notes, hashes, sources and versions replaced."""
    manifest = dict(findings.bundle.manifest)
    for key in ("passes", "outputs", "inputs", "calibration", "notes", "versions", "warnings"):
        manifest[key] = replaced(manifest[key])
    manifest |= {"backend": HOSTILE, "capture": HOSTILE, "notes": [HOSTILE]}
    manifest["warnings"] = [dict.fromkeys(("message", "node", "source", "fix"), HOSTILE)]
    manifest["float_islands"], manifest["runtime_float_ops"] = [HOSTILE], {HOSTILE: 1}
    captured = [hostile_node(node, "a") for node in findings.lineage.captured]
    low = [hostile_node(node, "b") for node in findings.lineage.lowered]
    values = [
        dataclasses.replace(
            value,
            grid=HOSTILE,
            statistics=dataclasses.replace(value.statistics, node=node.name),
            channels=value.channels and dataclasses.replace(value.channels, layer=HOSTILE),
        )
        for value, node in zip(findings.values, low, strict=False)
    ]
    first = Divergence(low[2].name, HOSTILE)
    verdict = dataclasses.replace(
        findings.verdict,
        rows=tuple(
            dataclasses.replace(row, id=HOSTILE, pair=HOSTILE, note=HOSTILE, measured={HOSTILE: 1})
            for row in findings.verdict.rows
        ),
        first_divergence=first,
        notes=(HOSTILE,),
    )
    regions = tuple(
        dataclasses.replace(
            region,
            module=low[3].module,
            op=HOSTILE,
            nodes=tuple(node.name for node in captured[2:5]),
            source=HOSTILE,
            rules=(HOSTILE,),
            validity=HOSTILE,
        )
        for region in findings.lineage.regions
    )
    refusal = Refusal(*[HOSTILE] * 7)
    return dataclasses.replace(
        findings,
        bundle=Bundle(findings.bundle.path, manifest),
        model=HOSTILE,
        lineage=Lineage(tuple(captured), tuple(low), regions, (refusal,)),
        verdict=verdict,
        inputs_are=HOSTILE,
        outputs=dataclasses.replace(findings.outputs, by=HOSTILE),
        values=values,
    )


def hostile_node(node: Any, mark: str) -> Any:
    """A node whose names are hostile, and still differ and still are connected."""
    return dataclasses.replace(
        node,
        name=f"{node.name}{mark}{HOSTILE}",
        op=f"foreign:{HOSTILE}",
        attributes=f"kernel={HOSTILE}",
        operands=tuple(f"{operand}{mark}{HOSTILE}" for operand in node.operands),
        dtype=HOSTILE,
        source=HOSTILE,
        scope=HOSTILE,
        module=f"{node.module}{HOSTILE}" if node.module else "",
    )
