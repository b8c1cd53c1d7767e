"""`fuseq fuse --explain`: every region that became one convolution, and every one that did not.

Regions of the same operations, lines, sizes and rules are shown once, with the names of the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table

from fuseq.affine.prove import LAYERS, Certificate
from fuseq.affine.refusal import Refusal
from fuseq.amounts import large
from fuseq.cli.tables import table

Shown = TypeVar("Shown")


def explanation(
    certificates: Iterable[Certificate], refusals: Iterable[Refusal]
) -> list[RenderableType]:
    """One table for each kind of fused region, then one of the refusals."""
    shown: list[RenderableType] = [""]
    for alike in groups_of((kind_of(region), region) for region in certificates):
        shown += _region(alike)
    groups = groups_of(((r.source, r.code, r.reason, r.fix), r) for r in refusals)
    if groups:
        shown += ["left as they are:", _refusals(groups)]
    return shown


def kind_of(region: Certificate) -> object:
    """What regions that look alike have in common."""
    return (
        [(node.op, node.source) for node in region.nodes],
        (region.rules, region.validity, region.source),
        (region.macs_before, region.macs_after),
        (region.parameters_before, region.parameters_after),
    )


def groups_of(keyed: Iterable[tuple[object, Shown]]) -> list[list[Shown]]:
    """Values of equal keys together, in the order of the first of each."""
    groups: list[tuple[object, list[Shown]]] = []
    for key, value in keyed:
        found = next((group for known, group in groups if known == key), None)
        if found is None:
            groups.append((key, [value]))
        else:
            found.append(value)
    return [group for _, group in groups]


def _region(alike: list[Certificate]) -> list[RenderableType]:
    first = alike[0]
    times = f", {len(alike)} times" if len(alike) > 1 else ""
    facts = table("", "")
    facts.add_row("MACs", f"{large(first.macs_before)} -> {large(first.macs_after)}")
    facts.add_row("parameters", f"{first.parameters_before:,} -> {first.parameters_after:,}")
    facts.add_row("error", f"{max(r.residual for r in alike):.1e} relative, in float64")
    facts.add_row("valid at", first.validity)
    facts.add_row("rests on", ", ".join(first.rules) or "composition alone")
    facts.add_row("reads", first.root)
    if len(alike) > 1:
        facts.add_row("alike", ", ".join(region.module for region in alike[1:]))
    nodes = table("node", "operation", "source")
    for node in first.nodes:
        nodes.add_row(node.name, node.op, node.source)
    place = f" ({first.source})" if first.source else ""
    became = f"{len(first.nodes)} operations -> 1 {LAYERS[first.op]}{times}"
    title = f"{first.module}{place}: {became}"
    return [title, indented(facts), indented(nodes)]


def _refusals(groups: list[list[Refusal]]) -> Padding:
    shown = table("node", "source", "why, and what would help")
    for alike in groups:
        first = alike[0]
        why = f"{first.code}: {first.reason}" + (f"\nhelp: {first.fix}" if first.fix else "")
        shown.add_row(", ".join(refusal.node for refusal in alike), first.source, why)
    return indented(shown)


def indented(shown: Table) -> Padding:
    """A table below its title."""
    return Padding(shown, (0, 0, 0, 2), expand=False)
