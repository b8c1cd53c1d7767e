"""A tiny model file, and a way to run a command in this process."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fuseq.cli.commands import app

MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width))
        self.b = nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))
        self.head = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, x):
        y = torch.relu(self.a(x) + self.b(x))
        return self.head(y * 1.0)


def get_model(width=4):
    print("the user's model prints this")
    torch.manual_seed(0)
    return Net(width)


def example_inputs():
    return (torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)


def calibration_data():
    for seed in range(4):
        yield torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
"""


def edited(model: Path, old: str, new: str) -> Path:
    """A model file with a part of its text replaced."""
    text = model.read_text()
    assert old in text
    model.write_text(text.replace(old, new))
    return model


@dataclass(frozen=True)
class Answer:
    """What a command gave."""

    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        return json.loads(self.stdout)

    @property
    def code(self) -> str:
        """Error code on stderr; there is exactly one, and no traceback."""
        assert "Traceback" not in self.stderr
        (found,) = re.findall(r"^error\[(FQ\d{3})\]", self.stderr, re.MULTILINE)
        return str(found)


@pytest.fixture
def run() -> Callable[..., Answer]:
    def invoke(*arguments: object) -> Answer:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        return Answer(result.exit_code, result.stdout, result.stderr)

    return invoke


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A two-branch network in a file."""
    file = tmp_path / "model.py"
    file.write_text(MODEL)
    return file
