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
