"""The documentation is run: code, commands and outputs, links, and tables that mirror the code.

How a block is marked, run and compared is in `shown_blocks.py`. What no test runs is listed here.
"""

import dataclasses
import importlib.util
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import typer
from torch import nn

import fuseq
from fuseq import errors, ops
from fuseq.affine import refusal
from fuseq.cli.commands import app
from fuseq.equivalence.input_sets import GENERATED
from fuseq.equivalence.thresholds import KEYS
from fuseq.quant.profile import Profile
from tests.shown_blocks import (
    ROOT,
    Session,
    blocks,
    prose,
    session,  # noqa: F401
    write_files,
)

README = ROOT / "README.md"
MANUAL = sorted((ROOT / "docs").rglob("*.md"))
EXAMPLES = sorted((ROOT / "examples").rglob("README.md"))
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "changelog.d/README.md")
    for path in ROOT.glob(pattern)
)
SHOWS_WHAT_FAILS = ROOT / "docs" / "errors.md"
"""Its blocks are what an error is about, out of its surroundings: they are read, not run."""

TRAINS = "minutes; tests of the example run it on a few images"
ELSEWHERE = "a package that the tests have not"
NOT_RUN = [
    ("README.md", "$ make demo", "makes an environment; its command is run"),
    ("README.md", "$ fuseq lower timm:create_model", "`make zoo` lowers this network"),
    ("docs/quickstart.md", "$ pip install", "`test_packaging.py` looks into the wheel"),
    (
        "docs/qnn.md",
        "$ fuseq lower model.py -b qnn --chip",
        "minutes; `make htp` runs the emulator",
    ),
    ("docs/migrating/from-torch-ao-fx.md", "from torch.ao", "torch is about to drop it"),
    ("docs/migrating/from-aimet.md", "from aimet_torch", ELSEWHERE),
    ("docs/migrating/from-onnx2tf-litert-torch.md", "$ onnx2tf", ELSEWHERE),
    ("docs/migrating/from-onnx2tf-litert-torch.md", "import litert_torch", ELSEWHERE),
    ("examples/README.md", "$ make examples", TRAINS),
    ("examples/README.md", "$ torchrun", TRAINS),
    ("examples/qatie/README.md", "$ python examples/qatie/train.py --out build/qatie\n", TRAINS),
    ("examples/qatie/README.md", "$ python examples/qatie/train.py --out build/dped", TRAINS),
    ("examples/qdr/README.md", "$ python examples/qdr/train.py --out build/qdr\n", TRAINS),
    ("examples/qdr/README.md", "$ python examples/qdr/train.py --out build/photographs", TRAINS),
    ("examples/sisr_x3/README.md", "$ fuseq lower", "the README of the repository runs it"),
    ("examples/sisr_x3/README.md", "$ python examples/sisr_x3/train.py", TRAINS),
    ("examples/sisr_x3/README.md", "$ fuseq qat", TRAINS),
]
"""Page and beginning of each block that no test runs, and why."""


FOLLOWED = [
    page for page in MANUAL if page != SHOWS_WHAT_FAILS and any(b.run for b in blocks(page))
]
LOWERED = [page for page in EXAMPLES if any(b.run for b in blocks(page))]


@pytest.mark.parametrize("page", FOLLOWED, ids=lambda page: page.stem)
def test_the_manual_runs(page: Path, session: Session):  # noqa: F811
    session.follow(page)


def test_the_readme_runs(session: Session):  # noqa: F811
    """Its model is that of the quickstart, its directory a checkout."""
    (session.directory / "examples").symlink_to(ROOT / "examples")
    write_files(ROOT / "docs" / "quickstart.md", session.directory)
    assert session.command("python train.py") == (0, "")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    x = torch.rand(1, 3, 64, 64)
    session.names |= {"model": model, "torch": torch, "x": x, "batches": [x, 1 - x]}
    session.follow(README)


@pytest.mark.parametrize("page", LOWERED, ids=lambda page: page.parent.name)
def test_the_examples_run(page: Path, session: Session):  # noqa: F811
    """In a checkout."""
    (session.directory / "examples").symlink_to(ROOT / "examples")
    session.follow(page)


def test_what_is_not_run_is_listed():
    marked = [
        (str(page.relative_to(ROOT)), block.text)
        for page in [README, *MANUAL, *EXAMPLES]
        for block in blocks(page)
        if not block.run
    ]
    listed = [(page, beginning) for page, beginning, _ in NOT_RUN]
    for page, text in marked:
        assert [name == page and text.startswith(start) for name, start in listed].count(True) == 1
    assert len(marked) == len(listed)


def test_blocks_say_what_they_are():
    """Commands in a block without a language would never be run."""
    command = re.compile(r"^(\$ )?(fuseq|make|pip|python|torchrun) ", re.MULTILINE)
    for page in [README, *MANUAL, *EXAMPLES]:
        for block in blocks(page):
            assert block.language or not command.search(block.text), (page, block.line)


def test_code_that_shows_what_fails_is_code():
    for block in blocks(SHOWS_WHAT_FAILS):
        if block.language == "python":
            compile(block.text, str(SHOWS_WHAT_FAILS), "exec")


def shown_commands() -> list[tuple[str, str]]:
    return [
        (page.name, command)
        for page in PAGES
        for block in blocks(page)
        if block.language == "console"
        for command, _ in block.commands
    ]


@pytest.mark.parametrize(("page", "command"), shown_commands())
def test_commands_are_real(page: str, command: str):
    program, *arguments = shlex.split(command)
    if program == "make":
        assert_target_of_make(arguments[0])
    elif program == "fuseq":
        group: Any = typer.main.get_command(app)
        # Reads the options and arguments without running the command.
        group.commands[arguments[0]].make_context(arguments[0], arguments[1:])
    else:
        known = ("cat", "cp", "echo", "ls", "onnx2tf", "pip", "pytest", "python", "torchrun")
        assert program in known
    if program in ("python", "torchrun"):
        assert_options_of_example(arguments)
    of_the_repository = [a for a in arguments if a.startswith(("examples/", "benchmarks/"))]
    assert [a for a in of_the_repository if not (ROOT / a).exists()] == []


def assert_options_of_example(arguments: list[str]) -> None:
    """What follows the script of an example are its options or those that all of them have."""
    scripts = [a for a in arguments if re.fullmatch(r"examples/.*\.py", a)]
    if not scripts:
        return
    shared = ROOT / "examples" / "common" / "training.py"
    sources = "".join(path.read_text() for path in (ROOT / scripts[0], shared))
    given = [a for a in arguments[arguments.index(scripts[0]) :] if a.startswith("--")]
    assert [option for option in given if f'"{option}"' not in sources] == []


def assert_target_of_make(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_the_text_names_is_there(page: Path):
    group: Any = typer.main.get_command(app)
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        program, *arguments = code.split()
        if program == "make" and arguments:
            assert_target_of_make(arguments[0])
        elif program == "fuseq" and arguments and re.match("[a-z]", arguments[0]):
            params = group.commands[arguments[0]].params
            shown = set(re.findall(r"(?<=\s)--?[a-z][\w-]*", code))
            assert shown <= {name for option in params for name in option.opts}, code
        elif program == "python":
            assert_there(arguments)


def assert_there(arguments: list[str]) -> None:
    """What `python` is to run is in the repository."""
    if arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]), arguments
    else:
        assert (ROOT / arguments[0]).exists(), arguments


def test_the_index_lists_every_page():
    index = (ROOT / "docs" / "index.md").read_text().split("\n## Reading the code\n")[0]
    listed = re.findall(r"\]\(([\w/-]+\.md)\)", index)
    assert len(listed) == len(set(listed))
    pages = {str(page.relative_to(ROOT / "docs")) for page in MANUAL} - {"index.md"}
    assert set(listed) == {page for page in pages if not re.match(r"decisions/\d", page)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        assert (page.parent / path).exists() or not path, target
        if anchor:
            assert anchor in anchors(page.parent / path if path else page), target


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as the web page spells them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
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


def test_the_readme_quotes_the_examples():
    section = README.read_text().split("## Three papers, end to end")[1].split("\n## ")[0]
    figures = (ROOT / "examples" / "figures.md").read_text()
    rows = re.findall(r"^\| (.*) \|$", section, re.MULTILINE)[1:]
    assert len(rows) == 3
    for row in rows:
        system, *cells = (cell.strip() for cell in row.split("|"))
        theirs = "".join(re.findall(rf"^\| {system} \| tflite \|.*$", figures, re.MULTILINE))
        assert [cell for cell in cells if cell not in theirs] == [], system


def test_the_readme_quotes_the_comparison():
    """Figures of its table, and of the sentences below it, are in the page that was measured."""
    section = README.read_text().split("## Beside other toolkits")[1].split("\n## ")[0]
    results = (ROOT / "benchmarks" / "peers" / "results.md").read_text()
    for row in re.findall(r"^\| (.*) \|$", section, re.MULTILINE)[1:]:
        toolkit, *cells = (cell.strip() for cell in row.split("|"))
        theirs = "".join(re.findall(rf"^\| {re.escape(toolkit)} \|.*$", results, re.MULTILINE))
        assert [cell for cell in cells[:-1] if cell not in theirs] == [], toolkit
    sentences = section.split("\n- ", 1)[1]
    figures = re.findall(r"\d+\.\d+", sentences)
    assert len(figures) > 10
    assert [figure for figure in figures if not re.search(rf"\b{figure}\b", results)] == []


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


def test_every_generated_set_is_described():
    described = [row[0].strip("`") for row in table_rows("checks.md", "## Inputs")]
    assert described == list(GENERATED)


def test_every_key_of_a_thresholds_file_is_described():
    rows = table_rows("checks-in-ci.md", "## The thresholds file")
    described = [row[0].strip("`") for row in rows]
    assert sorted(described) == sorted(KEYS)


def test_every_check_of_a_bundle_is_described(tmp_path: Path):
    x = torch.rand(1, 3, 8, 8)
    made = fuseq.lower(nn.Conv2d(3, 2, 3), x, out=tmp_path / "b", calibration=[x], check=False)
    file = made.path / "model.int8.qdq.onnx"
    model = onnx.load(file)
    model.doc_string = "changed"
    onnx.save(model, file)
    shown = [re.sub("parity-.*", "parity-<shape>", c.id) for c in fuseq.check(made.path).checks]
    described = [row[0].strip("`") for row in table_rows("checks.md", "## A bundle in itself")]
    assert described == shown
