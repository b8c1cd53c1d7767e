"""What the outputs of a pair are held to: one number for all of them, or one for each by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TypeAlias

from fuseq.errors import FuseqError, one_line
from fuseq.plugins import did_you_mean

Limit: TypeAlias = float | Mapping[str, float] | None

PARITY = ("differing", "max_lsb", "within_1lsb")
"""Limits that ask for a comparison in steps of the reference's grid."""


@dataclass(frozen=True)
class Limits:
    """Limits of one pair.

    Attributes:
        max_rel: largest error of float outputs, relative to the largest output.
        sqnr_db: smallest signal-to-noise ratio in dB.
        psnr_db: smallest peak signal-to-noise ratio in dB, over `data_range`.
        differing: number of integers that may differ.
        max_lsb: steps by which one may differ.
        within_1lsb: share of integers that must lie within one step, in 0..1.
        data_range: smallest and largest value that the outputs can mean; by default what the
            reference's take.
        metric_drop: by how much each metric of the user's `evaluate` may fall.
    """

    max_rel: Limit = None
    sqnr_db: Limit = None
    psnr_db: Limit = None
    differing: Limit = None
    max_lsb: Limit = None
    within_1lsb: Limit = None
    data_range: tuple[float, float] | None = None
    metric_drop: Mapping[str, float] = field(default_factory=dict)

    def of(self, output: str) -> dict[str, float]:
        """The limits that one output has, by the name of the metric."""
        found = {}
        for name in BY_OUTPUT:
            limit: Limit = getattr(self, name)
            value = limit.get(output) if isinstance(limit, Mapping) else limit
            if value is not None:
                found[name] = value
        return found

    def require_known(self, outputs: Sequence[str]) -> None:
        """Refuse a limit of an output that does not exist.

        Raises:
            FuseqError: FQ012.
        """
        for name in BY_OUTPUT:
            limit: Limit = getattr(self, name)
            for output in limit if isinstance(limit, Mapping) else ():
                if output not in outputs:
                    raise FuseqError(
                        "FQ012",
                        f"`{name}` has a limit of '{output}', which is no output",
                        why=one_line(f"outputs are {', '.join(outputs)}"),
                        fix=did_you_mean(output, outputs) or "name one of them",
                    )


BY_OUTPUT = tuple(f.name for f in fields(Limits) if f.name not in ("data_range", "metric_drop"))
"""Metrics that can have a limit for each output."""
