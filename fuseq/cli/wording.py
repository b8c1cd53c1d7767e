"""Checks in words: numbers, and where a failed one starts to differ."""

from __future__ import annotations

from collections.abc import Mapping

from fuseq.equivalence.result import Check
from fuseq.errors import one_line


def number(value: float) -> str:
    """A metric as people read it."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def numbers(values: Mapping[str, float | int]) -> str:
    """Metrics or limits in a row."""
    shown = ", ".join(f"{name} {number(value)}" for name, value in values.items())
    return one_line(shown) or "nothing"


def place(check: Check) -> str:
    """Where a check starts to differ, if that is known."""
    first = check.divergence
    if first is None:
        return ""
    return f"first at `{first.node}`" + (f" ({first.source})" if first.source else "")


def label(check: Check) -> str:
    """Name of a check without that of its candidate."""
    name = check.id.removeprefix(f"{check.candidate}:")
    return f"{name} {check.output}" if check.output and check.output not in name else name
