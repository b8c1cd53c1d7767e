"""What was checked of a bundle: when it was lowered, and again now, with what was measured.

A manifest only says which checks held, because measured floats are no part of a bundle. What can be
measured without the model is measured again, on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import fuseq
from fuseq.bundle import Bundle
from fuseq.equivalence.compare import fidelity
from fuseq.equivalence.result import Check, Divergence
from fuseq.errors import TOOL_MISSING, FuseqError
from fuseq.report.runs import Outputs

State = Literal["passed", "failed", "reported", "recorded"]


@dataclass(frozen=True)
class Row:
    """One check.

    Attributes:
        id: its name.
        pair: what was compared.
        kind: exact, fidelity or parity.
        measured: metric -> value; empty if it was not measured again.
        limits: the limit of each metric that has one.
        state: "passed", "failed", "reported" (no limit), or "recorded" (it passed when the bundle
            was lowered, and was not measured again).
        note: remark.
    """

    id: str
    pair: str
    kind: str
    measured: Mapping[str, float | int]
    limits: Mapping[str, float | int]
    state: State
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """All checks.

    Attributes:
        rows: in the order in which a lowering runs them.
        first_divergence: first wrong value, if one is known.
        notes: what could not be measured, and why.
    """

    rows: tuple[Row, ...]
    first_divergence: Divergence | None = None
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Row, ...]:
        """Checks that did not hold."""
        return tuple(row for row in self.rows if row.state == "failed")

    @property
    def passed(self) -> bool:
        """Whether something was compared and nothing failed."""
        return bool(self.rows) and not self.failed


def judge(bundle: Bundle, outputs: Outputs) -> Verdict:
    """Check a bundle again, as far as that goes without the model.

    Args:
        bundle: read from disk.
        outputs: of the float program and of the shipped file.
    """
    checks: list[Check] = []
    if outputs.shipped is not None:
        pair = f"float program <-> {outputs.by}"
        checks.append(fidelity("int8-vs-float", pair, outputs.real, outputs.shipped))
    try:
        result = fuseq.check(bundle)
    except FuseqError as error:
        if error.exit_code != TOOL_MISSING:
            raise
        note = f"Not measured on this machine: {error.what}."
        return Verdict(_merged(bundle, checks), notes=(note,))
    return Verdict(_merged(bundle, [*checks, *result.checks]), result.first_divergence)


def _merged(bundle: Bundle, measured: list[Check]) -> tuple[Row, ...]:
    """Recorded checks in their order, with what was measured now in place of those it repeats."""
    now = {check.id: check for check in measured}
    rows = []
    for entry in bundle.manifest["checks"]:
        check = now.pop(entry["id"], None)
        held = bool(entry["passed"])
        if check is None:
            note = "" if held else "failed when the bundle was lowered"
            state: State = "recorded" if held else "failed"
            rows.append(Row(entry["id"], entry["pair"], entry["class"], {}, {}, state, note))
        else:
            rows.append(_row(check, held))
    return (*rows, *(_row(check, True) for check in now.values()))


def _row(check: Check, held: bool) -> Row:
    state: State = "failed"
    if check.passed and held:
        state = "passed" if check.gate else "reported"
    note = check.note if held else f"failed when the bundle was lowered. {check.note}".strip()
    limits = {
        name: limit
        for name in check.metrics
        for key, limit in check.gate.items()
        if key.startswith(name)
    }
    return Row(check.id, check.pair, check.kind, check.metrics, limits, state, note)
