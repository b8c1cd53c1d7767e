"""Checks as a page of GitHub's Markdown, for the summary of a job.

Names come from models that nobody vouches for. They stand in code spans, where nothing is markup;
the two characters that end a span or a cell of a table are replaced by others that look alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fuseq.cli.wording import label, number, numbers
from fuseq.equivalence.result import Check, Layer
from fuseq.errors import one_line

LARGEST = 2**20
"""Bytes that a step's summary may have."""

_LOOK_ALIKE = str.maketrans({"`": "ˋ", "|": "¦"})


def markdown_page(
    checks: Mapping[str, Sequence[Check]],
    layers: Mapping[str, Sequence[Layer]],
    room: int = LARGEST,
) -> str:
    """A page of at most so many bytes: what failed comes first, and what has no room is counted.

    Args:
        checks: what each check of the command, by its id, came to.
        layers: tables of values, by what they are of.
        room: bytes.
    """
    every = [(id, check) for id, few in checks.items() for check in few]
    failed = [pair for pair in every if not pair[1].passed]
    passed = [pair for pair in every if pair[1].passed]
    verdict = f"{len(failed)} of {len(every)} checks failed" if failed else "all checks hold"
    head = [
        f"## fuseq check: {verdict}",
        "",
        "| check | candidate | output | class | measured | limit | first difference | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [_row(id, check) for id, check in (*failed, *passed)]
    for title, table in layers.items():
        rows += ["", f"### Values of {_code(title)}, worst first", ""]
        rows += ["| value | source | SQNR dB | own SQNR dB | differing |", "|---|---|---|---|---|"]
        rows += [_layer(layer) for layer in table]
    return _cut(head, rows, room)


def _cut(head: Sequence[str], rows: Sequence[str], room: int) -> str:
    size = len("\n".join(head).encode()) + 100  # and the last line
    kept: list[str] = []
    for row in rows:
        size += len(row.encode()) + 1
        if size > room:
            break
        kept.append(row)
    left = len(rows) - len(kept)
    more = ["", f"{left} more lines had no room."] if left else []
    page = "\n".join((*head, *kept, *more)) + "\n"
    return page if len(page.encode()) <= room else ""


def _row(id: str, check: Check) -> str:
    first = check.divergence
    where = f"{_code(first.node)} {_code(first.source)}" if first else ""
    mark = "**FAILED**" if not check.passed else "passed" if check.gate else "reported"
    cells = (_code(id), _code(check.candidate), _code(label(check)), check.kind)
    measured, allowed = _code(numbers(check.metrics)), _code(numbers(check.gate))
    return _cells((*cells, measured, allowed, where, mark))


def _layer(layer: Layer) -> str:
    own = "" if layer.own_sqnr_db is None else number(layer.own_sqnr_db)
    differing = "" if layer.differing is None else f"{layer.differing:,} of {layer.total:,}"
    cells = (_code(layer.node), _code(layer.source), number(layer.sqnr_db), own, differing)
    return _cells(cells)


def _cells(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _code(text: str) -> str:
    shown = one_line(text).translate(_LOOK_ALIKE).strip()
    return f"`{shown}`" if shown else ""
