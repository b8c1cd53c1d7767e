"""Writing measured limits into a thresholds file, leaving every other character as it is."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fuseq.equivalence.limits import BY_OUTPUT
from fuseq.equivalence.result import Check
from fuseq.equivalence.thresholds import SPELLED
from fuseq.errors import FuseqError

_AT_LEAST = ("sqnr_db", "psnr_db", "within_1lsb")
_NUMBER = r"[+-]?(?:\d[\d_]*)(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?"


def updated(file: Path, text: str, measured: Mapping[str, Sequence[Check]]) -> str:
    """A thresholds file with its limits at what was measured.

    Args:
        file: named in errors.
        text: its content.
        measured: checks by the id of what asked for them.

    Returns:
        The text with new numbers; what has no limit gets none. Rounded so that it just passes.

    Raises:
        FuseqError: FQ012 for a limit that is not written as `key = number` or
            `key = { output = number }` on one line.
    """
    wanted = tomllib.loads(text)
    lines = text.splitlines(keepends=True)
    blocks = [n for n, line in enumerate(lines) if re.match(r"\s*\[\[\s*check\s*\]\]", line)]
    for number, entry in enumerate(wanted["check"]):
        end = blocks[number + 1] if number + 1 < len(blocks) else len(lines)
        for key, value in _new_limits(entry, measured.get(entry["id"], ())).items():
            if entry[key] == value:
                continue
            entry[key] = value
            for n in range(blocks[number], end):
                if re.match(rf"\s*{key}\s*=", lines[n]):
                    lines[n] = _rewritten(lines[n], value)
    result = "".join(lines)
    try:
        same = tomllib.loads(result) == wanted
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        raise FuseqError(
            "FQ012",
            f"cannot update '{file.name}' without rewriting all of it",
            where=str(file),
            why="limits are updated where they stand as `key = number` or "
            "`key = { output = number }` on one line",
            fix="write them so, or edit the numbers by hand",
        )
    return result


def difference(file: Path, before: str, after: str) -> str:
    """What an update changes, as a unified diff."""
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), file.name, f"{file.name} (measured)", lineterm=""
    )
    return "\n".join(lines)


def _new_limits(entry: Mapping[str, Any], checks: Sequence[Check]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in (*BY_OUTPUT, *SPELLED):
        limit, metric = entry.get(key), SPELLED.get(key, key)
        if isinstance(limit, dict):
            by_output = {name: [c for c in checks if c.output == name] for name in limit}
            values = {name: _worst(metric, few) for name, few in by_output.items()}
            found[key] = {name: limit[name] if v is None else v for name, v in values.items()}
        elif limit is not None:
            value = _worst(metric, checks)
            found[key] = limit if value is None else value
    drops = entry.get("metric_drop", {})
    measured = {
        name: _rounded(check.metrics[f"{name}_drop"], up=True)
        for name in drops
        for check in checks
        if f"{name}_drop" in check.metrics
    }
    return found | ({"metric_drop": drops | measured} if drops else {})


def _worst(key: str, checks: Sequence[Check]) -> float | int | None:
    values = [check.metrics[key] for check in checks if key in check.metrics]
    if not values:
        return None
    if key in _AT_LEAST:
        return _rounded(min(values), up=False)
    worst = max(values)
    return worst if isinstance(worst, int) else _rounded(worst, up=True)


def _rounded(value: float, *, up: bool) -> float:
    """A number of four digits that is no stricter than what was measured."""
    if value == 0:
        return 0.0
    scale = 10.0 ** (3 - math.floor(math.log10(abs(value))))
    steps = math.ceil(value * scale) if up else math.floor(value * scale)
    return float(f"{steps / scale:.12g}")


def _rewritten(line: str, value: Any) -> str:
    if not isinstance(value, dict):
        return re.sub(rf"(=\s*){_NUMBER}", lambda found: found[1] + repr(value), line, count=1)

    def new(found: re.Match[str]) -> str:
        name = found["name"].strip('"')
        return found["before"] + repr(value[name]) if name in value else found[0]

    key = r"(?P<before>[{,]\s*(?P<name>[\w-]+|\"[^\"]*\")\s*=\s*)"
    return re.sub(key + _NUMBER, new, line)
