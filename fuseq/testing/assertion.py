"""`assert_equivalent`: `fuseq.check` as an assertion."""

from __future__ import annotations

from typing import Any

from fuseq.equivalence.pairs import check
from fuseq.equivalence.result import Check, CheckResult


def require(holds: bool, otherwise: str) -> None:
    """Assert, with words for the case that it does not hold, under `python -O` too."""
    if not holds:
        raise AssertionError(otherwise)


def assert_equivalent(
    reference: object, candidate: object | None = None, inputs: Any = None, **limits: Any
) -> None:
    """Assert that two things compute the same, by the checks of `fuseq.check`.

    Args:
        reference: module, program, prepared model, bundle, or path of a file or bundle.
        candidate: another; None to hold a bundle to its golden outputs.
        inputs: as `fuseq.check` takes them.
        **limits: likewise, such as `min_sqnr_db` and `max_rel`.

    Raises:
        AssertionError: if a check failed or nothing was compared, with what every check measured
            and the first node that is wrong.
        FuseqError: if a side cannot be read or run.
    """
    result = check(reference, candidate, inputs, **limits)
    if not result.passed:
        raise AssertionError(described(result))


def described(result: CheckResult) -> str:
    """A result in lines: one for each check and each metric, and the first wrong node."""
    failed = sum(not item.passed for item in result.checks)
    lines = [f"{failed} of {len(result.checks)} checks failed"]
    if not result.checks:
        lines = ["nothing was compared"]
    for item in result.checks:
        lines += _lines(item)
    first = result.first_divergence
    if first:
        lines.append(
            f"first difference: `{first.node}`" + (f" {first.source}" if first.source else "")
        )
    return "\n".join(lines)


def _lines(item: Check) -> list[str]:
    mark = "passed" if item.passed else "FAILED"
    lines = [f"{mark}  {item.id}: {item.pair}" + (f" ({item.note})" if item.note else "")]
    metrics = [f"{name} {value:.6g}" for name, value in item.metrics.items()]
    limits = [f"{name} {value:.6g}" for name, value in item.gate.items()]
    lines.append(
        f"        measured {', '.join(metrics)}; allowed {', '.join(limits) or 'anything'}"
    )
    return lines
