"""`fuseq init`: what it writes works, and nothing is ever overwritten or left half done."""

import os
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from fuseq.cli import starter
from fuseq.cli.commands import app

NAMES = ["model.py", "fuseq.check.toml", ".github/workflows/fuseq.yml"]


def steps_of(workflow: Path) -> list[list[str]]:
    """The fuseq commands that a workflow runs."""
    (job,) = yaml.safe_load(workflow.read_text())["jobs"].values()
    commands = [shlex.split(step["run"]) for step in job["steps"] if "run" in step]
    return [arguments for program, *arguments in commands if program == "fuseq"]


def test_what_it_writes_works(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = run("init", "--json")
    assert answer.status == 0, answer.stderr
    assert answer.document["files"] == NAMES
    lowering, checking = steps_of(tmp_path / NAMES[2])
    assert lowering[0] == "lower"
    lowered = run(*lowering)
    assert lowered.status == 0, lowered.stderr
    assert "no limit broken" in lowered.stderr
    ids = [check["id"] for check in tomllib.loads((tmp_path / NAMES[1]).read_text())["check"]]
    assert checking[:3] == ["check", "--file", NAMES[1]]
    checked = run(*checking)
    assert checked.status == 0, checked.stderr
    report = (tmp_path / "fuseq.xml").read_text()
    assert all(f'<testsuite name="{id}"' in report for id in ids)


def test_it_makes_the_directory_and_names_what_it_wrote(run, tmp_path):
    answer = run("init", tmp_path / "new" / "project")
    assert answer.status == 0, answer.stderr
    assert answer.stdout.split() == [str(tmp_path / "new" / "project" / name) for name in NAMES]
    assert re.search("get_model", (tmp_path / "new" / "project" / "model.py").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_overwritten(run, tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    answer = run("init", tmp_path)
    assert (answer.status, answer.code) == (2, "FQ008")
    assert f"has {name} already" in answer.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
    assert (tmp_path / name).read_text() == "mine"


def test_a_link_that_leads_nowhere_is_not_followed(run, tmp_path):
    (tmp_path / "model.py").symlink_to(tmp_path / "elsewhere.py")
    assert run("init", tmp_path).code == "FQ008"
    assert not (tmp_path / "elsewhere.py").exists()


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_all_or_nothing(run, tmp_path, monkeypatch, failure):
    opened = Path.open

    def open_two(path, mode="r", **options):
        if path.name == "fuseq.yml":
            raise failure
        return opened(path, mode, **options)

    monkeypatch.setattr(Path, "open", open_two)
    answer = run("init", tmp_path / "project")
    assert answer.status == (2 if isinstance(failure, OSError) else 130)
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_directory(run, tmp_path):
    (tmp_path / "project").write_text("a file")
    assert run("init", tmp_path / "project").code == "FQ008"
    assert os.listdir(tmp_path) == ["project"]


def test_commands_of_the_workflow_exist(tmp_path, run):
    assert run("init", tmp_path).status == 0
    group = typer.main.get_command(app)
    for command, *_ in steps_of(tmp_path / NAMES[2]):
        assert command in group.commands  # type: ignore[attr-defined]


def test_the_stub_has_what_the_readme_names():
    names = re.findall(r"^def (\w+)", starter.MODEL, re.MULTILINE)
    assert names == ["get_model", "example_inputs", "calibration_data"]
