"""What checks came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fuseq.errors import FuseqError


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
    """

    id: str
    pair: str
    kind: Literal["exact", "fidelity", "parity"]
    metrics: Mapping[str, float | int]
    gate: Mapping[str, float | int]
    passed: bool
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The check as the command line prints it (`class` instead of `kind`)."""
        fields = asdict(self)
        fields["class"] = fields.pop("kind")
        return fields


@dataclass(frozen=True)
class CheckResult:
    """All checks of one run.

    Attributes:
        checks: in the order they ran.
        first_divergence: where the first failing parity check starts to differ, if that is known.
    """

    checks: tuple[Check, ...]
    first_divergence: Divergence | None = None

    @property
    def passed(self) -> bool:
        """Whether something was compared and everything held."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def raise_for_status(self) -> None:
        """Raise FQ009 if nothing was compared, FQ302 if a check failed."""
        if not self.checks:
            raise FuseqError("FQ009", "nothing was compared", fix="give a pair with common outputs")
        failed = [check for check in self.checks if not check.passed]
        if failed:
            first = self.first_divergence
            raise FuseqError(
                "FQ302",
                f"{len(failed)} of {len(self.checks)} checks failed, first '{failed[0].id}' "
                f"({failed[0].pair})",
                where=f"`{first.node}` ({first.source})" if first else None,
                why=f"measured {dict(failed[0].metrics)}, allowed {dict(failed[0].gate)}",
                fix="start at the node named; fuseq inspect --graph shows what surrounds it"
                if first
                else "compare the stages before: each check is against the form before it",
            )

    def to_json(self) -> dict[str, Any]:
        """`{"checks": [...], "passed": bool, "first_divergence": null | {...}}`."""
        return {
            "checks": [check.to_json() for check in self.checks],
            "passed": self.passed,
            "first_divergence": asdict(self.first_divergence) if self.first_divergence else None,
        }
