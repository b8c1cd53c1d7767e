"""What checks came to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from fuseq.errors import FuseqError, one_line


@dataclass(frozen=True)
class Divergence:
    """First node, in execution order, whose value differs.

    Attributes:
        node: name of the node.
        source: `file:line` of the user's model, or the empty string.
    """

    node: str
    source: str


@dataclass(frozen=True)
class Check:
    """One comparison of one pair.

    Attributes:
        id: name, unique in a result.
        pair: "reference <-> candidate".
        kind: exact (float vs its rewrite), fidelity (float vs int8), parity (integers vs integers).
        metrics: what was measured.
        gate: limits the metrics were held to; empty if the check only reports.
        passed: whether every gate holds.
        note: host or runner remarks.
        candidate: what is held to the reference, where a run has several.
        output: the output it is of, where each is held to limits of its own.
        divergence: where it starts to differ, if it failed and that is known.
    """

    id: str
    pair: str
    kind: Literal["exact", "fidelity", "parity"]
    metrics: Mapping[str, float | int]
    gate: Mapping[str, float | int]
    passed: bool
    note: str = ""
    candidate: str = ""
    output: str = ""
    divergence: Divergence | None = None

    def to_json(self) -> dict[str, Any]:
        """The check as the command line prints it (`class` instead of `kind`)."""
        fields = asdict(self)
        fields["class"] = fields.pop("kind")
        return fields


@dataclass(frozen=True)
class Layer:
    """How one value fares that both sides of a pair show.

    Attributes:
        node: its name.
        source: `file:line` of the user's model, or the empty string.
        sqnr_db: power of the reference's reals over that of the error; 400 for none.
        own_sqnr_db: the same, of what the node makes of the candidate's own operands against exact
            arithmetic on them: what it loses itself. None where that is not known.
        differing: integers that differ, where both sides have integers.
        total: number of values.
    """

    node: str
    source: str
    sqnr_db: float
    own_sqnr_db: float | None = None
    differing: int | None = None
    total: int = 0


@dataclass(frozen=True)
class CheckResult:
    """All checks of one run.

    Attributes:
        checks: in the order they ran.
        first_divergence: where the first failing check starts to differ, if that is known.
        layers: every value that both sides show, worst first, by candidate; if they were asked for.
    """

    checks: tuple[Check, ...]
    first_divergence: Divergence | None = None
    layers: Mapping[str, tuple[Layer, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line: how many checks passed, or where it starts to be wrong."""
        from fuseq.display import result_line

        return result_line(self)

    def _repr_html_(self) -> str:
        from fuseq.display import result_html

        return result_html(self)

    @property
    def passed(self) -> bool:
        """Whether something was compared and everything held."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def with_more(self, found: Iterable[tuple[Check, Divergence | None]]) -> CheckResult:
        """This result with further checks at its end, each with where it starts to differ."""
        found = list(found)
        known = (self.first_divergence, *(first for _, first in found))
        checks = (*self.checks, *(check for check, _ in found))
        return replace(
            self, checks=checks, first_divergence=next((first for first in known if first), None)
        )

    def raise_for_status(self) -> None:
        """Raise FQ009 if nothing was compared, FQ302 if a check failed."""
        if not self.checks:
            raise FuseqError("FQ009", "nothing was compared", fix="give a pair with common outputs")
        failed = [check for check in self.checks if not check.passed]
        if failed:
            first = self.first_divergence
            raise FuseqError(
                "FQ302",
                f"{len(failed)} of {len(self.checks)} checks failed, "
                + one_line(f"first '{failed[0].id}' ({failed[0].pair})"),
                where=one_line(f"`{first.node}` ({first.source})") if first else None,
                why=f"measured {dict(failed[0].metrics)}, allowed {dict(failed[0].gate)}",
                fix="start at the node named; fuseq inspect --graph shows what surrounds it"
                if first
                else "compare the stages before: each check is against the form before it",
            )

    def to_json(self) -> dict[str, Any]:
        """`{"checks": [...], "passed": bool, "first_divergence": null | {...}}`, and any layers."""
        layers = {name: [asdict(layer) for layer in rows] for name, rows in self.layers.items()}
        return {
            "checks": [check.to_json() for check in self.checks],
            "passed": self.passed,
            "first_divergence": asdict(self.first_divergence) if self.first_divergence else None,
            **({"layers": layers} if layers else {}),
        }
