"""Streams and exit status, the same for every command.

Only the result goes to stdout: text for people, or with `--json` exactly one document. Progress,
messages and errors go to stderr, and so does everything that the user's code, exporters and C
libraries print. Status: 0 done; 1 a gate failed; 2 usage, or nothing was compared; 3 cannot be
captured, fused or lowered; 4 a backend's tool is missing; 70 a bug of ours; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

import typer

from fuseq.errors import GATE_FAILED, FuseqError

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA = "fuseq/1"
BUG, INTERRUPTED = 70, 130
_UNFOLDED = 100_000


@dataclass(frozen=True)
class Result:
    """What a command answers.

    Attributes:
        document: for `--json`, without schema and command.
        text: for people.
        passed: False if a gate failed.
    """

    document: Mapping[str, Any]
    text: RenderableType
    passed: bool = True


def claim_stdout() -> None:
    """Keep the process's stdout for the result, and give C code and child processes stderr.

    Not undone: a C library may hold what it printed in a buffer until the process ends.
    """
    sys.stdout.flush()
    result = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(result, "w", encoding="utf-8")


def answer(command: str, work: Callable[[], Result], *, as_json: bool, debug: bool) -> None:
    """Do a command's work, print its result, and exit with its status.

    Args:
        command: its name, for the document.
        work: whatever it prints goes to stderr.
        as_json: print the document, also for an error.
        debug: print the traceback of a coded error too.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr), _exits_told():
            result = work()
    except FuseqError as error:
        if debug:
            traceback.print_exc()
        print(error.render(), file=sys.stderr)
        if as_json:
            _print_document(command, {"error": _fields(error)})
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except Exception:
        traceback.print_exc()
        print("This is a bug in fuseq: please report it with the lines above.", file=sys.stderr)
        raise typer.Exit(BUG) from None
    if as_json:
        _print_document(command, result.document)
    else:
        _print(result.text, sys.stdout)
    raise typer.Exit(0 if result.passed else GATE_FAILED)


@contextlib.contextmanager
def _exits_told() -> Iterator[None]:
    """Only what the user's code calls can want to end the process: say where."""
    try:
        yield
    except SystemExit as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise FuseqError(
            "FQ003",
            f"the process was to end with status {error.code}",
            where=f"{frame.filename}:{frame.lineno}: {frame.line}",
            fix="raise an exception instead of calling sys.exit",
        ) from error


def _fields(error: FuseqError) -> dict[str, str | None]:
    return {key: getattr(error, key) for key in ("code", "what", "where", "why", "fix")}


def _print_document(command: str, document: Mapping[str, Any]) -> None:
    whole = _finite({"schema": SCHEMA, "command": command, **document})
    json.dump(whole, sys.stdout, indent=2, allow_nan=False)
    print()


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have, such as the SQNR of equal outputs."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def message(text: RenderableType) -> None:
    """Print something beside the result, on stderr."""
    _print(text, sys.stderr)


def message_line(line: str) -> None:
    """Print one line for a machine to read, on stderr, as it is."""
    print(line, file=sys.stderr, flush=True)


def _print(text: RenderableType, file: TextIO) -> None:
    from rich.console import Console

    terminal = file.isatty()
    # Without a terminal there is no width to fold at, and nobody to see spaces at the end of lines.
    width = None if terminal else _UNFOLDED
    console = Console(file=file, width=width, highlight=False, markup=False, emoji=False)
    with console.capture() as printed:
        console.print(text)
    shown = printed.get()
    file.write(shown if terminal else "".join(f"{line.rstrip()}\n" for line in shown.splitlines()))
