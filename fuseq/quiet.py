"""Keeping the words of libraries off the terminal while they try something."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Drop what torch logs and prints to stderr: what matters of it comes back as the exception."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def quiet_streams(*streams: int) -> Iterator[None]:
    """Drop what libraries write from C++, past `sys`.

    Args:
        streams: descriptors, 1 for stdout and 2 for stderr.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {stream: os.dup(stream) for stream in streams}
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in saved:
            os.dup2(sink, stream)
        yield
    finally:
        for stream, copied in saved.items():
            os.dup2(copied, stream)
            os.close(copied)
        os.close(sink)
