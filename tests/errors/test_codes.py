"""The table of codes, the code that raises them, and the page that explains them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fuseq.errors import CODES, FuseqError

ROOT = Path(__file__).parents[2]


def raised() -> set[str]:
    files = (
        p for folder in ("fuseq", "passes", "backends") for p in ROOT.glob(f"{folder}/**/*.py")
    )
    return {code for file in files for code in re.findall(r'"(FQ\d{3})"', file.read_text())}


def test_every_code_is_raised_and_every_raised_code_is_known() -> None:
    assert raised() == set(CODES)


def test_every_code_has_its_section() -> None:
    sections = re.findall(r"^## (FQ\d{3}): (.*)$", (ROOT / "docs/errors.md").read_text(), re.M)
    assert dict(sections) == {code: meaning for code, (meaning, _) in CODES.items()}


@pytest.mark.parametrize(
    ("code", "exit_code"), [("FQ001", 2), ("FQ101", 3), ("FQ301", 1), ("FQ302", 1), ("FQ502", 4)]
)
def test_exit_codes(code: str, exit_code: int) -> None:
    assert FuseqError(code, "it failed").exit_code == exit_code


def test_rendering() -> None:
    bare = FuseqError("FQ101", "what")
    full = FuseqError("FQ101", "what", where="model.py:3", why="why", fix="fix")
    assert str(bare) == "error[FQ101]: what"
    assert str(full) == "error[FQ101]: what\n  --> model.py:3\n  why: why\n  help: fix"
