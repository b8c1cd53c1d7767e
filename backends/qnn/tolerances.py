"""Steps of its grid by which an op on the HTP may differ from exact reals, rounded once.

An op of the HTP errs by a small part of a step before it rounds: it lands on the other side of a
tie, one step away, or nowhere else.
"""

from __future__ import annotations


def allowed_steps(op: str, dtype: str) -> int:
    """Steps allowed to an op.

    Args:
        op: canonical name.
        dtype: of the grid of its value.
    """
    return 1
