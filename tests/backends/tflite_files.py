"""Looking into TFLite files."""

from __future__ import annotations

from pathlib import Path

from fuseq.backends.tflite import file as tflite


def operators(file: Path) -> list[str]:
    """Names of a file's operators, in order."""
    return tflite.operators(tflite.unpacked(file.read_bytes()))
