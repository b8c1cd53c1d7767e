"""`fuseq.lower` on everything it takes, and what it leaves behind when something fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fuseq
from fuseq.backends.onnx import OnnxBackend
from fuseq.bundle import read_bundle

PAIRS = {
    "module": "trained <-> fused (float64)",
    "fused": "given <-> fused (float64)",
    "quantized": None,
}


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.narrow = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.wide(x) + self.narrow(x))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    made = Branches()
    for norm in (made.wide[1], made.narrow[1]):
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    return made


X = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
BATCHES = [torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]


@pytest.mark.parametrize("form", list(PAIRS))
def test_takes_modules_and_programs(form: str, model: nn.Module, tmp_path: Path) -> None:
    given: nn.Module | fuseq.Program = model
    if form != "module":
        given = fuseq.fuse(model, X)
    if form == "quantized":
        given = fuseq.quantize(given, calibration=BATCHES)
    bundle = fuseq.lower(given, X, out=tmp_path / "b", calibration=iter(BATCHES))
    assert bundle.result is not None
    bundle.result.raise_for_status()
    checks = {check.id: check for check in bundle.result.checks}
    pair = checks["fused-f64"].pair if "fused-f64" in checks else None
    assert pair == PAIRS[form]
    assert checks["parity-1x3x16x16"].metrics["differing"] == 0
    assert bundle.manifest["calibration"]["batches"] == 3


def test_a_program_trained_after_fusion_is_its_own_reference(
    model: nn.Module, tmp_path: Path
) -> None:
    program = fuseq.fuse(model, X)
    with torch.no_grad():
        for parameter in program.module.parameters():
            parameter.add_(0.1)
    bundle = fuseq.lower(program, out=tmp_path / "b", calibration=BATCHES)
    assert bundle.result is not None
    assert bundle.result.passed


def test_an_older_bundle_survives_a_failure(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "b"
    before = fuseq.lower(model, X, out=out, calibration=BATCHES).manifest

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(OnnxBackend, "lower", fail)
    with pytest.raises(OSError, match="disk full"):
        fuseq.lower(model, X, out=out, calibration=BATCHES, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    kept = read_bundle(out)
    assert kept.manifest == before
    assert kept.changed_files() == []


def test_refuses_what_it_may_not_replace(model: nn.Module, tmp_path: Path) -> None:
    fuseq.lower(model, X, out=tmp_path / "b", calibration=BATCHES)
    with pytest.raises(fuseq.FuseqError, match="FQ008"):
        fuseq.lower(model, X, out=tmp_path / "b", calibration=BATCHES)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("mine")
    with pytest.raises(fuseq.FuseqError, match="FQ008"):
        fuseq.lower(model, X, out=tmp_path / "own", calibration=BATCHES, force=True)
    assert (tmp_path / "own" / "thesis.txt").read_text() == "mine"


def test_int8_without_data_is_refused(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(fuseq.FuseqError, match="FQ006"):
        fuseq.lower(model, X, out=tmp_path / "b")
    assert list(tmp_path.iterdir()) == []
    bundle = fuseq.lower(model, X, out=tmp_path / "b", passes="fuse-affine")
    kinds = [entry["kind"] for entry in bundle.manifest["files"]]
    assert kinds == ["golden", "lineage", "float", "program"]
