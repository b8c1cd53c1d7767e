"""`fuseq fuse --explain`: its text at a narrow width, and whole names in a pipe."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console, Group, RenderableType

from fuseq.affine.refusal import Refusal
from fuseq.cli import models
from fuseq.cli.explanation import explanation

MODEL = """\
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.wide(x)
        return torch.relu(y + self.norm(x))


class Net(nn.Module):
    def __init__(self, depth=1):
        super().__init__()
        self.blocks = nn.Sequential(*[Block() for _ in range(depth)])
        self.mix = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 2, 3, padding=1)
        nn.init.constant_(self.mix.bias, 0.25)

    def forward(self, x):
        return self.head(self.mix(self.blocks(x)))


def get_model(depth=1):
    torch.manual_seed(0)
    return Net(depth).eval()


def example_inputs():
    return torch.rand(1, 8, 16, 16)
"""

NARROW = """
                before    after
 ────────────────────────────────
 convolutions   3         3
 batch norms    1         0
 parameters     818       802
 MACs           202,752   200,704

largest error: E relative in float64, E absolute in float32
(rounding explains E in float32)
captured with torch.fx

blocks_0_wide (model.py:13): 3 operations -> 1 convolution
  MACs        149,504 -> 147,456
  parameters  600 -> 584
  error       E relative, in float64
  valid at    all sizes
  rests on    composition alone
  reads       x

   node            operation    source
   ────────────────────────────────────────
   blocks_0_wide   conv2d       model.py:12
   blocks_0_norm   batch_norm   model.py:13
   add             add          model.py:13

"""

REFUSED = """
left as they are:

   node     source        why, and what would help
   ──────────────────────────────────────────────────────────────────────
   a, b     model.py:25   ring: positions would still read 1 rows of the
                          input instead of zeros
                          help: pad once, before the first convolution
   relu_7   model.py:27   nonlinear: relu is not affine

"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Blocks, then a convolution whose bias would be padded with zeros."""
    file = tmp_path / "model.py"
    file.write_text(MODEL)
    return file


def printed(shown: RenderableType, width: int) -> list[str]:
    """Lines without spaces at their ends, and with E for small numbers."""
    stream = io.StringIO()
    Console(file=stream, width=width, highlight=False, markup=False).print(shown)
    text = re.sub(r"\d\.\de-\d+", "E", stream.getvalue())
    return [line.rstrip() for line in text.splitlines()]


def explained(target: Path, width: int, *arguments: str) -> list[str]:
    source = models.Source(str(target), arguments)
    result = models.fuse(source, passes=None, explain=True, quiet=True)
    return printed(result.text, width)


def test_the_text_of_a_small_network(target: Path) -> None:
    shown = explained(target, 80)
    expected = NARROW.splitlines()
    assert shown[: len(expected)] == expected
    assert "left as they are:" in shown
    assert any(line.startswith("   head   model.py:25   border-bias: ") for line in shown)


def test_the_text_of_refusals() -> None:
    ring = "positions would still read 1 rows of the input instead of zeros"
    fix = "pad once, before the first convolution"
    refusals = [
        Refusal("ring", "a", "model.py:25", "x", "a", ring, fix),
        Refusal("nonlinear", "relu_7", "model.py:27", "x", "relu_7", "relu is not affine", ""),
        Refusal("ring", "b", "model.py:25", "a", "b", ring, fix),
    ]
    assert printed(Group(*explanation([], refusals)), 74) == REFUSED.splitlines()


def test_equal_regions_are_shown_once(target: Path) -> None:
    shown = explained(target, 80, "depth=4")
    (title,) = [line for line in shown if "-> 1 convolution" in line]
    assert title.endswith("3 operations -> 1 convolution, 4 times")
    (alike,) = [line for line in shown if line.startswith("  alike")]
    (node,) = [line for line in shown if " conv2d " in line]
    named = re.findall(r"blocks_\d_wide", f"{title} {alike}")
    assert sorted(named) == [f"blocks_{n}_wide" for n in range(4)]
    assert named[0] in node


@pytest.mark.parametrize("width", [60, 80, 120, 160])
def test_lines_fit(target: Path, width: int) -> None:
    assert max(map(len, explained(target, width))) <= width


def test_a_pipe_gets_whole_names(target: Path) -> None:
    long = "a" * 240
    target.write_text(target.read_text().replace("self.wide", f"self.{long}"))
    command = [sys.executable, "-m", "fuseq", "fuse", str(target), "--explain"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^   blocks_0_{long} +conv2d +model.py:12$", done.stdout, re.MULTILINE)
    assert not re.search(" $", done.stdout, re.MULTILINE)
