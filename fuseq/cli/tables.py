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


def memory(size: float) -> str:
    """Bytes as people read them: 512 B, 1.5 KiB, 67.8 MiB, 1.25 GiB."""
    for unit, digits in (("B", 0), ("KiB", 1), ("MiB", 1)):
        if size < 1024:
            return f"{size:.{digits}f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
