"""A bundle knows where its graph came from, and says it in the same bytes every time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fuseq
from fuseq.lineage import lineage_of, read_lineage, write_lineage

X = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Branches(nn.Module):
    """Two branches that fuse, and a product that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.wide(x) + self.narrow(x)))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Branches().eval()


def test_a_lineage_is_read_back_as_it_was_written(model: nn.Module, tmp_path: Path) -> None:
    captured = fuseq.capture(model, X)
    lineage = lineage_of(captured, fuseq.fuse(captured))
    write_lineage(lineage, tmp_path / "lineage.json")
    assert read_lineage(tmp_path / "lineage.json") == lineage
    (region,) = lineage.regions
    assert set(region.nodes) <= {node.name for node in lineage.captured}
    assert region.module in {node.module for node in lineage.lowered}
    assert region.scopes == ("narrow", "norm", "wide")
    assert region.source.startswith("test_lineage.py:")


def test_lowering_twice_gives_the_same_bytes(model: nn.Module, tmp_path: Path) -> None:
    for name in ("a", "b"):
        fuseq.lower(model, X, out=tmp_path / name, calibration=[X], check=False)
    for file in ("lineage.json", "sample.npz"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert str(tmp_path) not in (tmp_path / "a" / "lineage.json").read_text()


def test_the_sample_is_the_first_calibration_input(model: nn.Module, tmp_path: Path) -> None:
    batches = [torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)]
    bundle = fuseq.lower(model, X, out=tmp_path / "b", calibration=batches, check=False)
    stored = np.load(tmp_path / "b" / "sample.npz")
    assert bundle.file("sample") == tmp_path / "b" / "sample.npz"
    assert np.array_equal(stored["input.x"], batches[0][:1].numpy())


def test_a_large_frame_is_cut_to_its_middle(model: nn.Module, tmp_path: Path) -> None:
    frame = torch.rand(1, 3, 600, 520)
    fuseq.lower(model, X, out=tmp_path / "b", calibration=[frame], check=False)
    stored = np.load(tmp_path / "b" / "sample.npz")["input.x"]
    assert np.array_equal(stored, frame[:, :, 172:428, 132:388].numpy())


DAMAGE: dict[str, Any] = {
    "no regions": lambda s: s.pop("regions"),
    "a name that is a number": lambda s: s["captured"][0].update(name=1),
    "an unknown field": lambda s: s["captured"][0].update(colour="red"),
    "a shape in words": lambda s: s["lowered"][0].update(shape=["wide"]),
    "operands that are no list": lambda s: s["lowered"][1].update(operands="x"),
    "a node that reads itself": lambda s: s["captured"][1].update(operands=["wide"]),
    "a node twice": lambda s: s["captured"].append(s["captured"][0]),
    "nodes that are numbers": lambda s: s.update(captured=[1, 2]),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_damaged_lineage_is_named(damage: str, model: nn.Module, tmp_path: Path) -> None:
    program = fuseq.capture(model, X)
    file = tmp_path / "lineage.json"
    write_lineage(lineage_of(program, program), file)
    stored = json.loads(file.read_text())
    DAMAGE[damage](stored)
    file.write_text(json.dumps(stored))
    with pytest.raises(fuseq.FuseqError, match="FQ013"):
        read_lineage(file)
