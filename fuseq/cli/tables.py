"""Tables as the commands print them: plain columns, nothing folded away."""

from __future__ import annotations

from rich import box
from rich.table import Table


def table(*columns: str) -> Table:
    """An empty table; columns fold instead of cutting their text."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for column in columns:
        made.add_column(column, overflow="fold")
    return made
