"""Text files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fuseq.errors import FuseqError


def write_whole(file: Path, text: str) -> None:
    """Write a file beside its place and rename it: nobody ever sees a part of it.

    Args:
        file: to write or replace; its directory exists.
        text: written as UTF-8.

    Raises:
        FuseqError: FQ008 if it cannot be written; an older file is then as it was.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.absolute().parent)
        try:
            with open(handle, "w", encoding="utf-8") as opened:
                opened.write(text)
            os.chmod(name, 0o644)
            os.replace(name, file)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise FuseqError(
            "FQ008", f"cannot write '{file}': {error.strerror}", fix="choose another place"
        ) from error
