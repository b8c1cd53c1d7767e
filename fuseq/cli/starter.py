"""`fuseq init`: the files that a project starts with."""

from __future__ import annotations

import os
from pathlib import Path

from fuseq.cli.streams import Result
from fuseq.errors import FuseqError

MODEL = '''"""The network as fuseq reads it: put yours in the place of this one."""

import torch
from torch import nn


class Block(nn.Module):
    """Branches that fuseq collapses into one convolution."""

    def __init__(self, channels):
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.narrow = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(self.norm(self.wide(x) + self.narrow(x) + x))


def get_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), Block(16), nn.Conv2d(16, 3, 3, padding=1))
    # model.load_state_dict(torch.load("weights.pt", weights_only=True))
    return model.eval()


def example_inputs():
    return (torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)),)


def calibration_data():
    """A hundred images of yours, each like the example inputs. This is noise."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(8):
        yield torch.rand(1, 3, 64, 64, generator=generator)
'''

THRESHOLDS = """\
# What this repository promises of its files. `fuseq check` holds them to it, and
# `fuseq check --update` writes what it measures in the place of the limits that stand here.

[[check]]
id = "float-file"
ref = "model.py"
cand = "build/model/model.fp32.onnx"

[[check]]
id = "int8-file"
ref = "model.py"
cand = "build/model/model.int8.qdq.onnx"
sqnr_db = 20.0

[[check]]
id = "bundle"
ref = "build/model"
"""

WORKFLOW = """\
name: fuseq
on: [push, pull_request]
permissions:
  contents: read
jobs:
  check:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      - run: pip install fuseq
      - run: fuseq lower model.py --backend onnx --out build/model
      - run: fuseq check --file fuseq.check.toml --junit fuseq.xml --github
"""

FILES = {
    "model.py": MODEL,
    "fuseq.check.toml": THRESHOLDS,
    ".github/workflows/fuseq.yml": WORKFLOW,
}


def init(directory: Path) -> Result:
    """Write every file, or none.

    Args:
        directory: made if it does not exist.

    Raises:
        FuseqError: FQ008 if a file exists already or cannot be written; nothing is then there that
            was not there before.
    """
    taken = [name for name in FILES if os.path.lexists(directory / name)]
    if taken:
        raise FuseqError(
            "FQ008",
            f"'{directory}' has {', '.join(taken)} already",
            why="nothing is overwritten",
            fix="another directory: fuseq init DIR; or move them away",
        )
    made: list[Path] = []
    try:
        for name, text in FILES.items():
            _make_directory((directory / name).parent, made)
            with (directory / name).open("x", encoding="utf-8") as file:
                made.append(directory / name)
                file.write(text)
    except BaseException as error:
        for path in reversed(made):
            path.rmdir() if path.is_dir() else path.unlink()
        if not isinstance(error, OSError):
            raise
        raise FuseqError(
            "FQ008", f"cannot write to '{directory}': {error.strerror}", fix="another directory"
        ) from error
    files = [str(directory / name) for name in FILES]
    return Result({"files": files}, "\n".join(files))


def _make_directory(directory: Path, made: list[Path]) -> None:
    """Make a directory and its parents, noting each that is new."""
    if not directory.is_dir():
        _make_directory(directory.parent, made)
        directory.mkdir()
        made.append(directory)
