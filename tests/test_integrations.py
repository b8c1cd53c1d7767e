"""The GitHub Action and the pre-commit hook: what they run exists, and does what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import fuseq

ROOT = Path(__file__).parents[1]

THRESHOLDS = """
[[check]]
id = "bundle"
ref = "build/net"
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a lowered network and its thresholds, and fuseq on its path."""
    root = tmp_path_factory.mktemp("project")
    torch.manual_seed(0)
    x = torch.rand(1, 3, 16, 16)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    fuseq.lower(model, x, out=root / "build" / "net", calibration=[x])
    (root / "fuseq.check.toml").write_text(THRESHOLDS)
    (root / "bin").mkdir()
    program(root / "bin" / "fuseq", f'exec {shlex.quote(sys.executable)} -m fuseq "$@"')
    program(root / "bin" / "python", 'printf "%s\\n" "$@" > arguments.txt')
    return root


def program(file: Path, line: str) -> None:
    file.write_text(f"#!/bin/sh\n{line}\n")
    file.chmod(0o755)


def shell(project: Path, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the project as GitHub runs a step, with the project's programs first."""
    path = f"{project / 'bin'}{os.pathsep}{os.environ['PATH']}"
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    own = {"PATH": path, "PYTHONPATH": python_path, "GITHUB_ACTION_PATH": str(ROOT)}
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", command],
        cwd=project,
        env={**os.environ, **own, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def action() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
    return found


def step(name: str) -> tuple[str, dict[str, str]]:
    """Command and variables of a step, with every input at its default."""
    (found,) = (one for one in action()["runs"]["steps"] if one["name"] == name)
    inputs = {key: entry["default"] for key, entry in action()["inputs"].items()}
    given = lambda text: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: inputs[m[1]], text)  # noqa: E731
    return found["run"], {name: given(text) for name, text in found.get("env", {}).items()}


def test_the_action_is_one_that_github_reads():
    assert action()["runs"]["using"] == "composite"
    for one in action()["runs"]["steps"]:
        assert one["shell"] == "bash"
        # An input in a command would be code of whoever opens the pull request.
        assert "${{" not in one["run"]
    for entry in action()["inputs"].values():
        assert entry["description"]
        assert isinstance(entry["default"], str)


def test_the_action_installs_itself(project):
    command, variables = step("Install")
    assert shell(project, command, **variables).returncode == 0
    arguments = (project / "arguments.txt").read_text().splitlines()
    assert arguments == ["-m", "pip", "install", f"{ROOT}[tflite]"]


def test_the_action_checks(project):
    command, variables = step("Check")
    summary = project / "summary.md"
    done = shell(project, command, **variables, GITHUB_STEP_SUMMARY=str(summary))
    assert done.returncode == 0, done.stderr
    assert "<testsuites" in (project / "fuseq.xml").read_text()
    assert "bundle" in summary.read_text()


def hook() -> dict[str, Any]:
    (found,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    return dict(found)


def test_the_hook_is_one_that_pre_commit_reads():
    validate = ["-m", "pre_commit", "validate-manifest", str(ROOT / ".pre-commit-hooks.yaml")]
    done = subprocess.run([sys.executable, *validate], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("build/net/model.int8.qdq.onnx", True),
        ("model.tflite", True),
        ("build/net/fuseq.json", True),
        ("fuseq.check.toml", True),
        ("other.json", False),
        ("model.py", False),
    ],
)
def test_the_hook_runs_for_artifacts(file, wanted):
    assert bool(re.search(hook()["files"], file)) == wanted


def test_the_hook_checks_and_refuses(project, tmp_path):
    assert shell(project, hook()["entry"]).returncode == 0
    file = project / "build" / "net" / "model.int8.qdq.onnx"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole + b"x")
        refused = shell(project, hook()["entry"])
    finally:
        file.write_bytes(whole)
    assert refused.returncode != 0
    assert re.search(r"error\[FQ\d+\]", refused.stderr)


def test_the_hook_runs_no_model_code(project):
    (project / "model.py").write_text("raise SystemExit('this must not run')")
    text = THRESHOLDS + '\n[[check]]\nid = "model"\nref = "model.py"\ncand = "build/net"\n'
    (project / "fuseq.check.toml").write_text(text)
    try:
        done = shell(project, hook()["entry"])
    finally:
        (project / "fuseq.check.toml").write_text(THRESHOLDS)
    assert done.returncode == 0, done.stderr
    assert "left out by --fast: 1 checks" in done.stderr
