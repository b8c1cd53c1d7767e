"""Write what `find` found: the page and overlays, each file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from fuseq.errors import FuseqError
from fuseq.report.overlays import model_explorer, netron
from fuseq.report.page import GENERATOR, Findings, render


@dataclass(frozen=True)
class Written:
    """Files that were written.

    Attributes:
        page: the HTML page.
        overlays: files for other viewers.
    """

    page: Path
    overlays: tuple[Path, ...]


def default_page(bundle: Path) -> Path:
    """Beside a bundle: measured numbers are no part of it."""
    whole = bundle.resolve()
    return whole.with_name(f"{whole.name}.report.html")


def require_page(page: Path) -> None:
    """Refuse a place for a page before any work is done.

    Raises:
        FuseqError: FQ008 for a name that is not `.html`, a file that is no report, or a folder that
            does not exist or cannot be written.
    """
    if page.suffix.lower() not in (".html", ".htm"):
        raise FuseqError("FQ008", f"'{page}' does not end in .html", fix="-o FILE.html")
    try:
        with page.open("rb") as older:
            ours = GENERATOR.encode() in older.readline(200)
    except FileNotFoundError:
        ours = True
    except OSError as error:
        raise _refused(page, error) from error
    if not ours:
        raise FuseqError(
            "FQ008", f"'{page}' exists and is no report of fuseq", fix="choose another -o"
        )
    folder = page.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise FuseqError("FQ008", f"cannot write to '{folder}'", fix="choose another -o")


def write(findings: Findings, page: Path, overlays: Collection[str] = ()) -> Written:
    """Write the page, and an overlay's files beside it under its name.

    Args:
        findings: of a bundle.
        page: the HTML file.
        overlays: "model-explorer", "netron" or both.

    Raises:
        FuseqError: FQ008 for a page that cannot be written, FQ012 for an overlay of a bundle that
            has nothing to show in it.
    """
    require_page(page)
    files: dict[Path, bytes] = {}
    if "model-explorer" in overlays:
        for name, data in model_explorer(findings.bundle, findings.values).items():
            files[page.with_suffix(f".{name}.json")] = data
    if "netron" in overlays:
        files[page.with_suffix(".onnx")] = netron(findings.bundle, findings.values)
    files[page] = render(findings).encode()
    for file, data in files.items():
        _write_whole(file, data)
    return Written(page, tuple(file for file in files if file != page))


def _write_whole(file: Path, data: bytes) -> None:
    try:
        handle, part = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.absolute().parent)
    except OSError as error:
        raise _refused(file, error) from error
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(data)
        os.chmod(part, 0o644)
        os.replace(part, file)
    except OSError as error:
        raise _refused(file, error) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def _refused(file: Path, error: OSError) -> FuseqError:
    return FuseqError(
        "FQ008", f"cannot write '{file}': {error.strerror}", fix="make room, or another -o"
    )
