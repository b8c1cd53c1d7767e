"""Failed checks as annotations of GitHub: an error at the line of the model that is wrong.

A workflow command is a line `::error file=...,line=...::message`. In a message `%` and the ends of
lines are escaped, in a property `:` and `,` too (actions/toolkit, `command.ts`), so that no name in
a model can start a command of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fuseq.cli.wording import numbers, place
from fuseq.equivalence.result import Check
from fuseq.errors import one_line

WORST = 10
"""As many as GitHub shows of a step."""

_MESSAGE: Mapping[str, str] = {"%": "%25", "\r": "%0D", "\n": "%0A"}
_PROPERTY: Mapping[str, str] = {**_MESSAGE, ":": "%3A", ",": "%2C"}


def annotation_lines(
    checks: Mapping[str, Sequence[Check]], targets: Iterable[str], root: Path
) -> list[str]:
    """Lines of the worst failed checks; one for each place in a model.

    Args:
        checks: what each check of the command, by its id, came to.
        targets: files of models that the checks name.
        root: directory that paths are relative to.
    """
    failed = [(id, check) for id, few in checks.items() for check in few if not check.passed]
    failed.sort(key=lambda pair: badness(pair[1]), reverse=True)
    lines: dict[tuple[object, str], str] = {}
    for id, check in failed:
        key = (check.divergence or check.id, check.candidate)
        if key not in lines and len(lines) < WORST:
            lines[key] = _line(id, check, targets, root)
    return list(lines.values())


def badness(check: Check) -> float:
    """How far a check is past its limit, as a ratio; what has no number is worst."""
    worst = 0.0
    for name, limit in check.gate.items():
        value = check.metrics.get(name.removesuffix("_min"), 0)
        if name.endswith("_min"):
            over = 10 ** ((limit - value) / 10) if "db" in name else limit / max(value, 1e-300)
        else:
            over = value / limit if limit else 1.0 + value
        worst = max(worst, over)
    return worst


def _line(id: str, check: Check, targets: Iterable[str], root: Path) -> str:
    properties = {"title": f"fuseq check {id}"}
    source = check.divergence.source if check.divergence else ""
    file, _, line = source.rpartition(":")
    if file:
        properties = {"file": source_path(file, targets, root), "line": line, **properties}
    measured = f"measured {numbers(check.metrics)}; allowed {numbers(check.gate)}"
    said = [place(check), f"{check.pair} {check.output}".strip(), measured]
    message = one_line("; ".join(part for part in said if part))
    escaped = {name: _escaped(one_line(v), _PROPERTY) for name, v in properties.items()}
    shown = ",".join(f"{name}={value}" for name, value in escaped.items())
    return f"::error {shown}::{_escaped(message, _MESSAGE)}"


def source_path(name: str, targets: Iterable[str], root: Path) -> str:
    """Path of a source file that an artifact knows by its name only.

    Args:
        name: of the file.
        targets: files of models that the checks name; one of this name is meant.
        root: where it is looked for otherwise; one that is there once is meant.

    Returns:
        The path relative to the root, or the bare name where that says nothing.
    """
    known = [Path(target.partition(":")[0]) for target in targets]
    found = [path for path in known if path.name == name] or _below(root, name)
    distinct = {path.resolve() for path in found}
    if len(distinct) != 1:
        return name
    [path] = distinct
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else name


def _below(root: Path, name: str) -> list[Path]:
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".") and f != "node_modules"]
        if name in files:
            found.append(Path(folder) / name)
    return found


def _escaped(text: str, table: Mapping[str, str]) -> str:
    return "".join(table.get(character, character) for character in text)
