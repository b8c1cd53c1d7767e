"""What a terminal shows from the first moment on, and what a pipe gets."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest


def on_a_terminal(folder: Path, *arguments: str) -> tuple[str, str]:
    """What a command writes to stdout, a pipe, and to stderr, a terminal; without colours."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "fuseq", *arguments],
        cwd=folder,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux's way to say that nobody has the other end any more
            part = b""
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.stdout is not None
    with process.stdout as stdout:
        result = stdout.read().decode()
    assert process.wait() == 0, shown
    return result, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


def test_a_terminal_is_told_at_once_and_then_of_each_stage(model):
    result, shown = on_a_terminal(model.parent, "fuse", model.name)
    places = [shown.index(words) for words in ("starting", "load", "capture", "fuse-affine")]
    assert places == sorted(places)
    assert "━" in shown  # a bar
    assert "convolutions" in result
    assert "starting" not in result


def test_a_pipe_gets_one_line_for_each_stage(model):
    done = subprocess.run(
        [sys.executable, "-m", "fuseq", "fuse", str(model)],
        capture_output=True,
        text=True,
        check=True,
    )
    stages = [line for line in done.stderr.splitlines() if line.endswith(" ...")]
    assert stages == ["load ...", "capture ...", "fuse-affine ...", "check ..."]
    assert "starting" not in done.stderr


@pytest.mark.parametrize("command", [("fuse", "model.py", "-q"), ("explain", "FQ101")])
def test_what_is_quiet_or_quick_leaves_no_bar(model, command):
    _, shown = on_a_terminal(model.parent, *command)
    assert "━" not in shown
    assert ("starting" in shown) == (command[0] == "explain")
