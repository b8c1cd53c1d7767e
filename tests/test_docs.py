"""The documentation is run: code, commands and outputs, links, and tables that mirror the code.

A fenced block says what it is by its first line:

    ```python               run, all blocks of a page in one namespace, from top to bottom
    ```python file=PATH     written to PATH before the page is run; other languages alike
    ```text                 what the block before it prints
    ```console              `$ command` lines and what they print

Numbers such as 3.8e-16 and versions differ between machines and are compared by form only. In
`docs/errors.md` blocks show failing code, and README's commands are read without being run.
"""

import contextlib
import dataclasses
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

from fuseq import errors, ops
from fuseq.affine import refusal
from fuseq.cli.commands import app
from fuseq.quant.profile import Profile

ROOT = Path(__file__).parents[1]
MANUAL = sorted((ROOT / "docs").glob("*.md"))
RUN = [page for page in MANUAL if page.name != "errors.md"]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/*/*.md", "changelog.d/README.md")
    for path in ROOT.glob(pattern)
)
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    file: str | None
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(found[1], found[2], found[3], text[: found.start()].count("\n") + 1)
        for found in BLOCK.finditer(text)
    ]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory that Python imports from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_manual_runs(page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch):
    for block in blocks(page):
        if block.file:
            (workplace / block.file).parent.mkdir(parents=True, exist_ok=True)
            (workplace / block.file).write_text(block.text)
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks(page):
        if block.file:
            continue
        if block.language == "python":
            printed = run_python(page, block, names)
        elif block.language == "text":
            assert masked(printed) == masked(block.text), printed
        elif block.language == "console":
            for command, expected in commands(block):
                printed = run_command(command, workplace, monkeypatch)
                if expected:
                    assert masked(printed) == masked(expected), printed


def test_the_python_of_the_readme_runs(workplace: Path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    x = torch.rand(1, 3, 64, 64)
    names: dict[str, Any] = {"model": model, "torch": torch, "x": x, "batches": [x, 1 - x]}
    python = [block for block in blocks(ROOT / "README.md") if block.language == "python"]
    assert python
    for block in python:
        run_python(ROOT / "README.md", block, names)
    assert (workplace / "build" / "x" / "fuseq.json").is_file()


def run_python(page: Path, block: Block, names: dict[str, Any]) -> str:
    code = compile("\n" * block.line + block.text, str(page), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, names)
    return printed.getvalue()


def commands(block: Block) -> Iterator[tuple[str, str]]:
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, printed = part.partition("\n")
        yield command.partition("  #")[0].strip(), printed


def run_command(command: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    program, *arguments = shlex.split(command)
    if (program, *arguments[:2]) == ("pip", "install", "-e"):
        install(workplace / arguments[2], workplace / "site")
        monkeypatch.syspath_prepend(workplace / "site")
        return ""
    if program == "torchrun":
        launch = [sys.executable, "-m", "torch.distributed.run", *arguments]
        done = subprocess.run(launch, cwd=workplace, check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout
    if program == "pytest":
        tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        return subprocess.run(
            tests, cwd=workplace, check=True, capture_output=True, text=True
        ).stdout
    assert program == "fuseq", command
    printed = CliRunner().invoke(app, arguments).output
    # One line for each stage is progress, not the result.
    return re.sub(r"^[\w-]+ \.\.\.\n", "", printed, flags=re.MULTILINE)


def install(package: Path, site: Path) -> None:
    """Not with -e: that would add to the environment the tests run in."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    options = ["--no-build-isolation", "--target", str(site), str(package)]
    subprocess.run([*pip, *options], check=True)


def masked(text: str) -> list[str]:
    """Lines without margins, and without digits that belong to a machine."""
    text = re.sub(r"\b\d(\.\d+)?e-\d+\b", "E", text)
    text = re.sub(r"\b\d+\.\d+\.\d+\b", "VERSION", text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def shown_commands() -> list[tuple[str, str]]:
    return [
        (page.name, command)
        for page in PAGES
        for block in blocks(page)
        if block.language == "console"
        for command, _ in commands(block)
    ]


@pytest.mark.parametrize(("page", "command"), shown_commands())
def test_commands_are_real(page: str, command: str):
    program, *arguments = shlex.split(command)
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "fuseq":
        group: Any = typer.main.get_command(app)
        # Reads the options and arguments without running the command.
        group.commands[arguments[0]].make_context(arguments[0], arguments[1:])
    else:
        assert program in ("pip", "pytest", "torchrun")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    prose = BLOCK.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        assert (page.parent / path).exists() or not path, target
        if anchor:
            assert anchor in anchors(page.parent / path if path else page), target


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as the web page spells them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_error_code_has_a_section():
    sections = re.findall(
        r"^## (FQ\d{3}): (.*)$", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE
    )
    assert sections == [(code, title) for code, (title, _) in errors.CODES.items()]


def table_rows(page: str, heading: str) -> list[tuple[str, ...]]:
    """Rows of the first table under a heading, without its two header lines."""
    text = (ROOT / "docs" / page).read_text().split(f"\n{heading}\n", 1)[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]]


def test_the_vocabulary_is_complete():
    modules = {f"`nn.{kind.__name__}`": name for kind, name in ops.MODULES.items()}
    assert {row[1]: row[0].strip("`") for row in table_rows("vocabulary.md", "## Modules")} == (
        modules
    )
    expected = [vocabulary_row(function, name) for function, name in ops.FUNCTIONS.items()]
    assert table_rows("vocabulary.md", "## Functions") == expected
    page = (ROOT / "docs" / "vocabulary.md").read_text()
    assert [name for name in ops.VOCABULARY if f"`{name}`" not in page] == []


def vocabulary_row(function: Callable[..., Any], name: str) -> tuple[str, ...]:
    """What `ops` says of a function: name, call, attributes."""
    attributes = ", ".join(f"`{a}`" for a in sorted(ops.ATTRIBUTES[name]))
    return f"`{name}`", f"`{home(function)}`", attributes


def home(function: Callable[..., Any]) -> str:
    """Where a user finds a function of the vocabulary."""
    if isinstance(function, torch._ops.OpOverload):
        return f"torch.ops.{function}"
    name = function.__name__
    if function is ops.requantize:
        return f"fuseq.ops.{name}"
    return f"F.{name}" if getattr(torch, name, None) is not function else f"torch.{name}"


def test_the_profile_is_described():
    described = [row[0].strip("`") for row in table_rows("writing-a-backend.md", "## The profile")]
    assert described == [field.name for field in dataclasses.fields(Profile)]


def test_every_refusal_code_is_described():
    described = [row[0].strip("`") for row in table_rows("fusion.md", "## Refusals")]
    assert described == list(refusal.CODES)
