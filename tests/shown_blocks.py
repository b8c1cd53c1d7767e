"""Fenced blocks of a Markdown page: what they hold, how they are run, what must come out.

The first line of a block says what it is:

    ```python               run, all blocks of a page in one namespace, from top to bottom
    ```python file=PATH     written to PATH before the page is run; other languages alike
    ```text                 what the block before it prints
    ```console              `$ command` lines and what they print, in one directory for the page
    ```LANGUAGE not-run     read, not run; `NOT_RUN` in `test_docs.py` says why

A command must end with status 0, unless the next one is `$ echo $?`: then with what that prints.
Where output is shown it is compared, from its first line to its last. A line `...` stands for any
number of lines, `...` within a line for anything. Numbers such as 3.8e-16 and versions differ
between machines and are compared by form only; decibels, which follow from training, to 0.3.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fuseq.cli.commands import app

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w*)(?: file=(\S+)| (not-run))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DECIMAL = re.compile(r"\d+\.\d+")
DECIBELS = 0.3
STAGE = re.compile(r"^[\w-]+ \.\.\.\n", re.MULTILINE)
"""One line for each stage of a command is progress, not the result."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    file: str | None
    run: bool
    text: str
    line: int

    @property
    def commands(self) -> list[tuple[str, str]]:
        """The commands of a console block, without comments, and what each is said to print."""
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]
        split = (part.partition("\n") for part in parts)
        return [(command.partition("  #")[0].strip(), printed) for command, _, printed in split]


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(found[1], found[2], found[3] is None, found[4], text[: found.start()].count("\n") + 1)
        for found in BLOCK.finditer(text)
    ]


def prose(page: Path) -> str:
    """A page without its blocks."""
    return BLOCK.sub("", page.read_text())


def write_files(page: Path, directory: Path) -> None:
    for block in blocks(page):
        if block.file:
            (directory / block.file).parent.mkdir(parents=True, exist_ok=True)
            (directory / block.file).write_text(block.text)


@dataclass
class Session:
    """A page being followed by its reader.

    Attributes:
        directory: where commands run and files are written.
        names: the namespace of the Python blocks.
        site: a directory that Python imports from, for packages that the page installs.
    """

    directory: Path
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})

    @property
    def site(self) -> Path:
        return self.directory / "site"

    def follow(self, page: Path) -> None:
        """Write the files of a page, run its blocks in order, and compare what they print."""
        write_files(page, self.directory)
        printed = ""
        for block in blocks(page):
            if block.file or not block.run:
                continue
            if block.language == "python":
                printed = self.python(page, block)
            elif block.language == "text":
                assert_shown(printed, block.text)
            elif block.language == "console":
                self.console(block)

    def python(self, page: Path, block: Block) -> str:
        code = compile("\n" * block.line + block.text, str(page), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, self.names)
        return printed.getvalue()

    def console(self, block: Block) -> None:
        shown = iter([*block.commands, ("", "")])
        command, expected = next(shown)
        while command:
            following, status = next(shown)
            actual, printed = self.command(command)
            asked = following == "echo $?"
            assert actual == (int(status) if asked else 0), f"{command}: {actual}\n{printed}"
            if expected:
                assert_shown(printed, expected)
            command, expected = next(shown) if asked else (following, status)

    def command(self, command: str) -> tuple[int, str]:
        """The status of a command and what it prints, on both streams."""
        program, *arguments = shlex.split(command)
        if program == "fuseq":
            return self.fuseq(arguments)
        if (program, *arguments[:2]) == ("pip", "install", "-e"):
            return self.install(arguments[2])
        if program == "torchrun":
            return self.process(sys.executable, "-m", "torch.distributed.run", *arguments)
        if program == "pytest":
            options = ["-q", "-p", "no:cacheprovider"]
            return self.process(sys.executable, "-m", "pytest", *options, *arguments)
        if program == "python":
            return self.process(sys.executable, *arguments)
        assert program in ("cat", "ls", "cp"), command
        return self.process(program, *arguments)

    def fuseq(self, arguments: list[str]) -> tuple[int, str]:
        """In this process, which has torch."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                app(arguments)
            except SystemExit as end:
                status = int(end.code or 0)
        self.forget_modules()
        return status, STAGE.sub("", printed.getvalue())

    def forget_modules(self) -> None:
        """What a command or an earlier test imported of its user's modules.

        Commands are processes of their own, where `model` is nobody else's `model`.
        """
        users = (str(self.directory.parent), str(ROOT / "examples"))
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None)).startswith(users):
                del sys.modules[name]

    def install(self, package: str) -> tuple[int, str]:
        """Not with -e: that would add to the environment the tests run in."""
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
        options = ["--no-build-isolation", "--target", str(self.site)]
        return self.process(*pip, *options, str(self.directory / package))

    def process(self, *command: str) -> tuple[int, str]:
        # What is imported here has to be what a child imports.
        paths = os.pathsep.join([str(self.directory), str(ROOT)])
        environment = {**os.environ, "PYTHONPATH": paths}
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """An empty current directory that Python imports from."""
    session = Session(tmp_path)
    session.forget_modules()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(session.site)
    monkeypatch.syspath_prepend(tmp_path)
    yield session
    session.forget_modules()


def assert_shown(printed: str, expected: str) -> None:
    """Raises: AssertionError, if a page shows something else than was printed."""
    assert shown(masked(printed), masked(expected)), (
        f"the page shows\n\n{expected}\nbut this was printed\n\n{printed}"
    )


def shown(printed: list[str], expected: list[str]) -> bool:
    """Whether lines are those printed, but for lines that `...` stands for."""
    if not expected:
        return not printed
    if expected[0] == "...":
        return any(shown(printed[skipped:], expected[1:]) for skipped in range(len(printed) + 1))
    return bool(printed) and alike(printed[0], expected[0]) and shown(printed[1:], expected[1:])


def alike(printed: str, expected: str) -> bool:
    """Whether a line is the printed one, but for `...` and what a processor does to training."""
    if re.search("psnr|sqnr", expected) and "..." not in expected:
        decibels = [DECIMAL.findall(line) for line in (printed, expected)]
        pairs = zip(*decibels, strict=False)
        if any(abs(float(a) - float(b)) > DECIBELS for a, b in pairs):
            return False
        printed, expected = (DECIMAL.sub("DECIBELS", line) for line in (printed, expected))
    return bool(re.fullmatch(re.escape(expected).replace(r"\.\.\.", ".*"), printed))


def masked(text: str) -> list[str]:
    """Lines without margins, and without digits that belong to a machine."""
    text = re.sub(r"\b\d(\.\d+)?e-\d+\b", "E", text)
    text = re.sub(r"\b\d+\.\d+\.\d+\b", "VERSION", text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]
