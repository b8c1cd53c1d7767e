"""The walls hold: one copy of each module, one direction of imports, one home for each name."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fuseq
import fuseq.qat
from fuseq.errors import CODES

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["passes", "backends"])
def test_a_second_copy_is_refused(name):
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"ImportError: import fuseq.{name}" in done.stderr


@pytest.mark.parametrize("name", ["passes", "backends"])
def test_links_are_relative(name):
    link = ROOT / "fuseq" / name
    if not link.is_symlink():
        pytest.skip("this checkout has no symlinks")
    assert os.readlink(link) == f"../{name}"


def test_importing_fuseq_imports_no_torch():
    code = "import sys, fuseq; assert not {'torch', 'numpy', 'onnx'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_no_modules():
    # Importing fuseq/capture.py would replace the function fuseq.capture by the module.
    modules = {path.stem for path in (ROOT / "fuseq").iterdir()}
    assert not modules & set(fuseq.__all__)
    assert all(getattr(fuseq, name) is not None for name in fuseq.__all__)
    modules = {path.stem for path in (ROOT / "fuseq" / "qat").iterdir()}
    assert not modules & set(fuseq.qat.__all__)
    assert all(getattr(fuseq.qat, name) is not None for name in fuseq.qat.__all__)


def test_version_is_said_once_in_effect():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == fuseq.__version__


def test_every_error_code_has_a_section():
    lines = (ROOT / "docs" / "errors.md").read_text().splitlines()
    sections = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert sections == [f"{code}: {title}" for code, (title, _) in CODES.items()]


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("fuseq/text.py", "import fuseq.passes.quantize", "Nothing imports fuseq.passes"),
        ("fuseq/text.py", "import fuseq.backends.onnx", "Nothing imports fuseq.backends"),
        ("fuseq/text.py", "import fuseq.cli", "Nothing imports the command line"),
        ("passes/legalize.py", "import fuseq.passes.quantize", "A pass imports no other pass"),
        ("passes/legalize.py", "import onnx", "A pass sees its target as a Profile"),
        ("fuseq/errors.py", "import torch", "Errors and the plugin registry import no torch"),
    ],
)
def test_import_walls_catch_a_planted_violation(tmp_path, file, line, contract):
    for name in ("fuseq", "passes", "backends"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / file).open("a") as source:
        source.write(f"\n{line}\n")
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    broken = [found for found in done.stdout.splitlines() if found.endswith("BROKEN")]
    assert any(contract in found for found in broken)
