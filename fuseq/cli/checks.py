"""`fuseq check`: the sides it is asked for, or those of a thresholds file, and what it reports."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

import fuseq
from fuseq.api import Progress
from fuseq.bundle import MANIFEST
from fuseq.cli.annotations import annotation_lines
from fuseq.cli.check_tables import checks_table, layers_table, verdict
from fuseq.cli.junit import junit_xml
from fuseq.cli.markdown import LARGEST, markdown_page
from fuseq.cli.models import Source
from fuseq.cli.progress import progress
from fuseq.cli.streams import Result, message, message_line
from fuseq.equivalence.layouts import parse_layouts
from fuseq.equivalence.limits import Limits
from fuseq.equivalence.result import Check, CheckResult
from fuseq.equivalence.threshold_update import difference, updated
from fuseq.equivalence.thresholds import NAME, Request, read_thresholds, text_of
from fuseq.errors import FuseqError
from fuseq.target import Target
from fuseq.whole_file import write_whole


@dataclass(frozen=True)
class Reports:
    """What is written besides the result.

    Attributes:
        junit: XML file, if wanted.
        markdown: page, if wanted.
        github: annotate the run on GitHub, and add the page to its summary.
        update: thresholds file to write measured limits into, if wanted.
    """

    junit: Path | None = None
    markdown: Path | None = None
    github: bool = False
    update: Path | None = None


def requests_of(
    file: Path | None, sides: Sequence[str], given: Mapping[str, Any], fast: bool
) -> list[Request]:
    """What is to be checked: the sides named, else the checks of a thresholds file.

    Args:
        file: thresholds file, if one is named.
        sides: reference and candidates.
        given: options of the sides, by their keys in a thresholds file.
        fast: only what is made of artifacts, on recorded inputs.

    Raises:
        FuseqError: FQ012 for both of them and for a file that cannot be read; FQ009 where nothing
            is left to compare.
    """
    if file and sides:
        raise FuseqError("FQ012", "-f names checks, and so do the sides", fix="leave one out")
    if given and not sides:
        raise FuseqError(
            "FQ012",
            f"options go with sides on the command line, and here is none: {', '.join(given)}",
            fix="write them into the thresholds file, which has a key for each",
        )
    wanted = [_of_sides(sides, given)] if sides else read_thresholds(file or Path(NAME))
    if not fast:
        return wanted
    few = [
        replace(request, inputs=None)
        for request in wanted
        if not any(_runs_code(side) for side in (request.ref, *request.cands))
    ]
    if len(few) < len(wanted):
        message(f"left out by --fast: {len(wanted) - len(few)} checks that run a model's code")
    if not few:
        raise FuseqError("FQ009", "no check is of artifacts only", fix="leave out --fast")
    return few


def _of_sides(sides: Sequence[str], given: Mapping[str, Any]) -> Request:
    limits = {name: given[name] for name in ("max_rel", "sqnr_db") if name in given}
    counts = {name: given[name] for name in ("samples", "seed") if name in given}
    return Request(
        "check",
        sides[0],
        tuple(sides[1:]),
        given.get("inputs"),
        limits=Limits(**limits),
        layouts=parse_layouts(given.get("layout", [])),
        arguments=tuple(given.get("arg", ())),
        shapes=tuple(given.get("input", ())),
        weights=given.get("weights"),
        **counts,
    )


def thresholds_file(file: Path | None, sides: Sequence[str]) -> Path:
    """The file that measured limits are written to.

    Raises:
        FuseqError: FQ012 where sides are named instead, or `CI` is set.
    """
    if os.environ.get("CI"):
        raise FuseqError(
            "FQ012",
            "--update is refused where CI is set",
            why="a check that writes its own limits holds nothing to account",
            fix="update on your machine, and commit the file",
        )
    if sides:
        raise FuseqError("FQ012", "--update writes a thresholds file", fix="name no sides")
    return file or Path(NAME)


def check(
    requests: Sequence[Request], reports: Reports, *, layers: bool, bisect: bool, quiet: bool
) -> Result:
    """Run checks, write their reports, and answer."""
    results: dict[str, CheckResult] = {}
    with progress(quiet, {}) as report:
        for request in requests:
            results[request.id] = _run(request, layers, bisect, report)
    whole = _together(results)
    if not whole.checks:
        whole.raise_for_status()
    targets = [side for r in requests for side in (r.ref, *r.cands) if not _is_artifact(side)]
    by_id = {id: result.checks for id, result in results.items()}
    _write(by_id, whole, reports, targets)
    document = whole.to_json()
    if reports.update is not None:
        return _update(reports.update, by_id, document)
    message(verdict(whole))
    if bisect:
        first = whole.first_divergence
        named = f"`{first.node}` {first.source}" if first else "none among the values both show"
        message(f"first difference: {named}")
    shown: list[RenderableType] = [checks_table(whole)]
    shown += [layers_table(name, rows) for name, rows in whole.layers.items()]
    return Result(document, Group(*shown), whole.passed)


def _run(request: Request, layers: bool, bisect: bool, report: Progress) -> CheckResult:
    """One check; errors say which it was."""
    loaded: list[Target] = []
    try:
        sides = [_side(request, name, report, loaded) for name in (request.ref, *request.cands)]
        report(request.id if request.file else "compare", 0)
        evaluate = loaded[0].function("evaluate") if loaded else None
        return fuseq.check(
            sides[0],
            sides[1:] or None,
            request.inputs,
            limits=request.limits,
            layouts=request.layouts,
            layers=layers or request.layers,
            bisect=bisect,
            samples=request.samples,
            seed=request.seed,
            evaluate=evaluate,
        )
    except FuseqError as error:
        if request.file is None:
            raise
        place = f"{request.file}, check '{request.id}'"
        where = "; ".join(part for part in (place, error.where) if part)
        raise FuseqError(
            error.code, error.what, where=where, why=error.why, fix=error.fix
        ) from error


def _together(results: Mapping[str, CheckResult]) -> CheckResult:
    """All results as one; ids say which check they are of where there are several."""
    if len(results) == 1:
        [only] = results.values()
        return only
    checks = [
        replace(found, id=f"{id}/{found.id}") for id, r in results.items() for found in r.checks
    ]
    first = next((r.first_divergence for r in results.values() if r.first_divergence), None)
    layers = {f"{id}/{name}": rows for id, r in results.items() for name, rows in r.layers.items()}
    return CheckResult(tuple(checks), first, layers)


def _is_artifact(name: str) -> bool:
    path = Path(name)
    return os.path.isfile(path / MANIFEST) or (os.path.exists(path) and path.suffix != ".py")


def _runs_code(name: str) -> bool:
    """Whether a side is spelled as a target; a missing artifact is none, and an error."""
    place, _, factory = name.partition(":")
    return place.endswith(".py") or (factory.isidentifier() and not os.path.exists(name))


def _side(request: Request, name: str, report: Progress, loaded: list[Target]) -> Any:
    """What `fuseq.check` compares: a path of a file or bundle, or a model as a program."""
    if _is_artifact(name):
        return Path(name)
    report("load", 0)
    target = Source(name, request.arguments, request.shapes, request.weights).load()
    loaded.append(target)
    report("capture", 0)
    return fuseq.capture(target.model, target.example_inputs)


def _write(
    checks: Mapping[str, Sequence[Check]],
    whole: CheckResult,
    reports: Reports,
    targets: Sequence[str],
) -> None:
    if reports.junit:
        write_whole(reports.junit, junit_xml(checks))
    if reports.markdown:
        write_whole(reports.markdown, markdown_page(checks, whole.layers))
    if not reports.github:
        return
    root = Path(os.environ.get("GITHUB_WORKSPACE") or Path.cwd()).resolve()
    for line in annotation_lines(checks, targets, root):
        message_line(line)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        _append(Path(summary), checks, whole)


def _append(file: Path, checks: Mapping[str, Sequence[Check]], whole: CheckResult) -> None:
    """Add to what other commands of the step have written, in one write."""
    try:
        room = LARGEST - (file.stat().st_size if file.exists() else 0)
        with file.open("ab", buffering=0) as opened:
            opened.write(markdown_page(checks, whole.layers, room).encode())
    except OSError as error:
        raise FuseqError(
            "FQ008", f"cannot write '{file}': {error.strerror}", fix="unset GITHUB_STEP_SUMMARY"
        ) from error


def _update(
    file: Path, checks: Mapping[str, Sequence[Check]], document: Mapping[str, Any]
) -> Result:
    before = text_of(file)
    after = updated(file, before, checks)
    changes = difference(file, before, after)
    if before != after:
        write_whole(file, after)
    return Result({**document, "diff": changes}, changes or "no limit changed")
