"""The bundle: a directory with the lowered files and `fuseq.json`, which says what they are.

Same inputs, same bytes: no timestamps, no absolute paths, no measured floats. A bundle is built
beside its place and renamed at the end, so it is never half-written and an older one survives any
failure.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuseq.errors import FuseqError

if TYPE_CHECKING:
    from fuseq.equivalence.result import CheckResult
    from fuseq.program import Program

_UNWRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO),
    *(errno.EBUSY, errno.EXDEV),  # the place is a mount point, or the working directory
)
MANIFEST = "fuseq.json"
SCHEMA = "fuseq/1"
_VERSIONED = ("fuseq", "torch", "onnx", "onnxruntime", "onnxsim", "numpy", "ai-edge-litert")


@dataclass(frozen=True)
class Bundle:
    """A finished bundle.

    Attributes:
        path: its directory.
        manifest: content of `fuseq.json`.
        result: checks run while lowering, with every metric; None for a bundle read from disk.
        program: what was lowered; None likewise.
    """

    path: Path
    manifest: Mapping[str, Any]
    result: CheckResult | None = None
    program: Program | None = None

    def __repr__(self) -> str:
        """One line: its place, its files, and what its checks came to."""
        from fuseq.display import bundle_line

        return bundle_line(self)

    def _repr_html_(self) -> str:
        from fuseq.display import bundle_html

        return bundle_html(self)

    def file(self, kind: str) -> Path | None:
        """The file of a kind ("int8", "float", "golden", "program", "lineage"...), or None."""
        paths = (self.path / f["path"] for f in self.manifest["files"] if f["kind"] == kind)
        return next(paths, None)

    def lowered_program(self) -> Program | None:
        """What was lowered, from memory or from the bundle's own file; None if it has none.

        Raises:
            FuseqError: FQ013 for a damaged file.
        """
        from fuseq.program_file import read_program

        file = self.file("program")
        return self.program or (read_program(file) if file else None)

    def changed_files(self) -> list[str]:
        """Names of files that are missing or whose sha256 is not the manifest's."""
        return [
            entry["path"]
            for entry in self.manifest["files"]
            if not (self.path / entry["path"]).is_file()
            or sha256(self.path / entry["path"]) != entry["sha256"]
        ]

    def require_intact(self, kinds: Collection[str] = ()) -> None:
        """Raise FQ013 if a file is missing or is not the one that was written.

        Args:
            kinds: of files that must be unchanged, all by default; the others must only be there.
        """
        kind_of = {entry["path"]: entry["kind"] for entry in self.manifest["files"]}
        changed = [
            name
            for name in self.changed_files()
            if not kinds or kind_of[name] in kinds or not (self.path / name).is_file()
        ]
        if changed:
            raise FuseqError(
                "FQ013",
                f"bundle '{self.path}' is damaged: {', '.join(changed)}",
                why="missing, or its sha256 is not the manifest's",
                fix="lower the model again",
            )


def read_bundle(path: Path) -> Bundle:
    """A bundle from disk.

    Raises:
        FuseqError: FQ013 if the directory has no readable manifest of a known schema.
    """
    if not path.is_dir():
        raise FuseqError(
            "FQ013",
            f"'{path}' is no bundle",
            fix="a directory that fuseq lower wrote; or give two files",
        )
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        known = manifest["schema"] == SCHEMA
        if known:
            _require_whole(manifest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FuseqError(
            "FQ013", f"'{path}' is no bundle: {error}", fix="a directory that fuseq lower wrote"
        ) from error
    if not known:
        raise FuseqError(
            "FQ013", f"'{path}' has schema {manifest['schema']}", fix=f"this version reads {SCHEMA}"
        )
    return Bundle(path, manifest)


def _require_whole(manifest: dict[str, Any]) -> None:
    """Raise TypeError or KeyError where a manifest lacks what readers of bundles rely on."""
    for key in ("files", "inputs", "outputs", "passes"):
        if not all(isinstance(entry, dict) for entry in manifest[key]):
            raise TypeError(f"'{key}' is damaged")
    for entry in manifest["files"]:
        if not all(isinstance(entry[key], str) for key in ("path", "sha256", "kind")):
            raise TypeError("'files' is damaged")
    for entry in (*manifest["inputs"], *manifest["outputs"]):
        grid = entry.get("grid", {"dtype": "int8", "scale": 1.0, "zero_point": 0})
        plain = isinstance(entry["name"], str) and isinstance(entry["shape"], list)
        numbers = isinstance(grid["scale"], float) and isinstance(grid["zero_point"], int)
        if not (plain and numbers and isinstance(grid["dtype"], str)):
            raise TypeError(f"the interface entry {entry['name']!r} is damaged")
    for key in ("backend", "float_islands", "runtime_float_ops", "calibration"):
        manifest[key]


def require_writable(out: Path, force: bool) -> None:
    """Refuse an output place before any work is done.

    Raises:
        FuseqError: FQ008 if `out` exists (and is no bundle to replace with `force`), or its parent
            cannot be written.
    """
    try:
        taken = out.is_symlink() or (out.exists() and not out.is_dir())
    except OSError as error:
        raise FuseqError(
            "FQ008", f"cannot write to '{out}': {error.strerror}", fix="choose another -o"
        ) from error
    if taken:
        raise FuseqError("FQ008", f"'{out}' is not a directory", fix="choose another -o")
    if out.exists() and any(out.iterdir()):
        if not (out / MANIFEST).is_file():
            raise FuseqError(
                "FQ008",
                f"'{out}' exists and is no bundle",
                why="it has files but no fuseq.json; nothing there will be deleted",
                fix="choose another -o",
            )
        if not force:
            raise FuseqError(
                "FQ008", f"'{out}' holds a bundle already", fix="--force replaces it, or another -o"
            )
    parent = out.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise FuseqError("FQ008", f"cannot write to '{parent}'", fix="choose another -o")


@contextlib.contextmanager
def staged(out: Path, force: bool) -> Iterator[Path]:
    """A fresh directory beside `out` that takes its place when the block ends without an error.

    Raises:
        FuseqError: FQ008 as `require_writable`, or when the place cannot be made.
    """
    require_writable(out, force)
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
    except OSError as error:
        raise FuseqError(
            "FQ008", f"cannot write beside '{out}': {error.strerror}", fix="choose another -o"
        ) from error
    try:
        yield stage
        stage.chmod(0o755)
        require_writable(out, force)  # another lowering may have ended meanwhile
        _swap(stage, out)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise FuseqError(
            "FQ008", f"cannot write '{out}': {error.strerror}", fix="make room, or another -o"
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _swap(stage: Path, out: Path) -> None:
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.absolute().parent))
    kept = old / out.name
    try:
        if out.exists():
            with contextlib.suppress(FileNotFoundError):  # another lowering took it away
                out.rename(kept)
        try:
            stage.rename(out)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise FuseqError(
                    "FQ008",
                    f"'{out}' was written by another lowering meanwhile",
                    why="its bundle is there and whole; this one is gone",
                    fix="lower once more, or to another -o",
                ) from error
            if kept.exists():
                kept.rename(out)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def write_manifest(
    stage: Path, kinds: Mapping[str, str], content: Mapping[str, Any]
) -> dict[str, Any]:
    """Write `fuseq.json` over the files of a staged bundle.

    Args:
        stage: the directory.
        kinds: file name -> kind, for every file in it.
        content: further keys.

    Returns:
        The manifest.
    """
    manifest = {
        "schema": SCHEMA,
        "versions": versions(),
        "files": [
            {"path": name, "sha256": sha256(stage / name), "kind": kinds[name]}
            for name in sorted(kinds)
        ],
        **content,
    }
    (stage / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    return manifest


def versions() -> dict[str, str]:
    """Versions of the tools whose change can change a file."""
    found = {}
    for name in _VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def sha256(file: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
