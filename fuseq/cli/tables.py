"""Tables as the commands print them: plain columns, nothing folded away."""

from __future__ import annotations

from rich import box
from rich.table import Table


def table(*columns: str) -> Table:
    """An empty table; columns fold instead of cutting their text."""
    headed = any(columns)
    made = Table(box=box.SIMPLE_HEAD if headed else None, pad_edge=False, show_header=headed)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def large(number: int) -> str:
    """A count as people read it: 12,345, 67.8 M, 1.25 G."""
    if number < 10**6:
        return f"{number:,}"
    return f"{number / 10**6:.1f} M" if number < 10**9 else f"{number / 10**9:.2f} G"
