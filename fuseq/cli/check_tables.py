"""Checks as tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from fuseq.cli.tables import table
from fuseq.cli.wording import number
from fuseq.equivalence.result import CheckResult, Layer
from fuseq.errors import FuseqError, one_line


def checks_table(result: CheckResult) -> Table:
    """One row per check, and one per metric below it."""
    shown = table("check", "measured", "", "limit", "")
    for item in result.checks:
        mark = "FAILED" if not item.passed else "passed" if item.gate else "reported"
        shown.add_row(one_line(item.id), one_line(item.pair), "", "", mark, end_section=False)
        for name, value in item.metrics.items():
            limit = item.gate.get(name, item.gate.get(f"{name}_min"))
            allowed = "" if limit is None else number(limit)
            shown.add_row("", one_line(f"  {name}"), number(value), allowed)
        if item.divergence:
            first = f"`{item.divergence.node}` {item.divergence.source}"
            shown.add_row("", one_line(f"  first: {first}"))
        if item.note:
            shown.add_row("", one_line(f"  note: {item.note}"))
    return shown


def layers_table(name: str, layers: Sequence[Layer]) -> Table:
    """One row per value, worst first."""
    shown = table("value", "source", "SQNR dB", "own SQNR dB", "differing")
    shown.title, shown.title_justify = one_line(name), "left"
    for row in layers:
        own = "" if row.own_sqnr_db is None else number(row.own_sqnr_db)
        differing = "" if row.differing is None else f"{row.differing:,} of {row.total:,}"
        shown.add_row(one_line(row.node), row.source, number(row.sqnr_db), own, differing)
    return shown


def verdict(result: CheckResult) -> str:
    """The error of the first failed check with the first wrong node, or that all hold."""
    try:
        result.raise_for_status()
    except FuseqError as error:
        return error.render()
    return f"{len(result.checks)} checks, no limit broken"
