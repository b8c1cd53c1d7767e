"""Counts and sizes as people read them."""

from __future__ import annotations


def large(number: int) -> str:
    """A count: 12,345, 67.8 M, 1.25 G."""
    if number < 10**6:
        return f"{number:,}"
    return f"{number / 10**6:.1f} M" if number < 10**9 else f"{number / 10**9:.2f} G"


def memory(size: float) -> str:
    """Bytes: 512 B, 1.5 KiB, 67.8 MiB, 1.25 GiB."""
    for unit, digits in (("B", 0), ("KiB", 1), ("MiB", 1)):
        if size < 1024:
            return f"{size:.{digits}f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
