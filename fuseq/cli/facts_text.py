"""`fuseq inspect` of a model as people read it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import RenderableType
from rich.table import Table

from fuseq.amounts import large, memory
from fuseq.api import structure_counts
from fuseq.cli.explanation import groups_of, indented, kind_of
from fuseq.cli.facts import Facts
from fuseq.cli.tables import table
from fuseq.errors import FuseqError
from fuseq.memory import largest_value, peak_bytes, value_bytes, weight_bytes
from fuseq.outlook import Outlook
from fuseq.program import Program
from fuseq.receptive_field import ReceptiveField

_SHOWN = 4
"""Names shown of a long list; `--json` has all."""


def facts_text(facts: Facts) -> list[RenderableType]:
    """Tables, in the order of a first look: what it is, what fusing makes of it, who takes it."""
    return [
        _operations(facts),
        _sizes(facts),
        "",
        *_fusion(facts),
        *_islands(facts),
        *_targets(facts),
        *(f"note: {note}" for note in facts.program.origin.notes),
    ]


def _operations(facts: Facts) -> Table:
    shown = table("operation", "count", "MACs")
    for name, count in facts.counts.items():
        work = facts.macs[name]
        shown.add_row(name, str(count), large(work) if work else "")
    shown.add_row("total", str(sum(facts.counts.values())), large(sum(facts.macs.values())))
    return shown


def _sizes(facts: Facts) -> Table:
    program, largest = facts.program, largest_value(facts.program)
    shown = table("", "")
    count = sum(p.numel() for p in program.module.parameters())
    shown.add_row("parameters", f"{count:,} ({memory(weight_bytes(program))} with statistics)")
    place = f", {source}" if (source := program.source(largest)) else ""
    shown.add_row(
        "largest value",
        f"{largest.name}{place}: {_shape(program.shape(largest))}, "
        f"{memory(value_bytes(program, largest))}",
    )
    shown.add_row("values at once", f"{memory(peak_bytes(program))} at most")
    for kind, names, nodes in (
        ("input", program.input_names, program.inputs()),
        ("output", program.output_names, program.outputs()),
    ):
        for name, node in zip(names, nodes, strict=True):
            shown.add_row(kind, f"{name}: {_shape(program.shape(node))}")
    for field in facts.fields:
        shown.add_row("receptive field", _field(program, field))
    return shown


def _field(program: Program, field: ReceptiveField) -> str:
    sources = {node.name: program.source(node) for node in program.graph.nodes}
    whole = [f"{name} ({sources[name]})" if sources[name] else name for name in field.whole_image]
    through = f"the whole image, through {_some(whole)}"
    pair = f"{field.output} in {field.input}: "
    rows, columns = ("all" if size is None else str(size) for size in field.size)
    if field.size == (None, None):
        return pair + through
    steps = "x".join("-" if step is None else str(step) for step in field.stride)
    window = f"window {rows}x{columns}, stride {steps}"
    return pair + (f"{through}; else {window}" if whole else window)


def _fusion(facts: Facts) -> list[RenderableType]:
    counts = structure_counts(facts.program, facts.fused)
    convolutions, norms = (
        f"{counts['ops'][f'{kind}_before']} -> {counts['ops'][f'{kind}_after']}"
        for kind in ("conv", "bn")
    )
    parameters = " -> ".join(f"{n:,}" for n in counts["parameters"].values())
    work = " -> ".join(large(n) for n in counts["macs"].values())
    shown: list[RenderableType] = [
        f"fusion: {convolutions} convolutions, {norms} batch norms, "
        f"{parameters} parameters, {work} MACs"
    ]
    if not facts.regions:
        return [*shown, ""]
    regions = table("layer", "source", "ops", "MACs", "")
    for alike in groups_of((kind_of(region), region) for region in facts.regions):
        first = alike[0]
        regions.add_row(
            first.module,
            first.source,
            str(len(first.nodes)),
            f"{large(first.macs_before)} -> {large(first.macs_after)}",
            f"x{len(alike)}" if len(alike) > 1 else "",
        )
    return [*shown, indented(regions)]


def _islands(facts: Facts) -> list[RenderableType]:
    if not facts.islands:
        return ["affine islands: none", ""]
    shown = table("nodes", "why they stay apart")
    for island in facts.islands:
        first = {refusal.code: refusal for refusal in reversed(island.refusals)}
        reasons = [f"{code}: {refusal.reason}" for code, refusal in reversed(first.items())]
        why = "\n".join(reasons) or "no part of them is one layer"
        shown.add_row(_some(island.nodes), why)
    return [f"affine islands: {len(facts.islands)} (see fuseq fuse --explain)", indented(shown)]


def _targets(facts: Facts) -> list[RenderableType]:
    shown: list[RenderableType] = []
    for name, found in facts.outlooks.items():
        if isinstance(found, FuseqError):
            shown += [f"backend {name}: {found.what}", ""]
            continue
        verdict = "takes it" if not (found.refusals or found.unmet) else "refuses it"
        shown.append(
            f"backend {name} {verdict}: {found.integers} operations in integers, "
            f"{len(found.floats)} in float"
        )
        rows = _objections(found)
        shown.append(indented(rows) if rows.row_count else "")
    return shown


def _objections(found: Outlook) -> Table:
    shown = table("node", "source", "why")
    for refusal in found.refusals:
        help = f"\nhelp: {refusal.fix}" if refusal.fix else ""
        shown.add_row(refusal.node, refusal.source, f"refused: {refusal.reason}{help}")
    for sentence in found.unmet:
        shown.add_row("", "", f"refused: {sentence}")
    for alike in groups_of(((n.op, n.reason), n) for n in found.floats):
        sources = sorted({n.source for n in alike if n.source})
        names = [n.node for n in alike]
        shown.add_row(_some(names), _some(sources), f"float: {alike[0].reason}")
    return shown


def _some(names: Sequence[str], between: str = ", ") -> str:
    """The first names of a list, and how many more there are."""
    more = f"{between}and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return between.join(names[:_SHOWN]) + more


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape))
