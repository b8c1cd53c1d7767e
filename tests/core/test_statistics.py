"""Warnings about batch norms before they are folded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fuseq
from fuseq.statistics import statistics_warnings


class TwoNorms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        for norm in (self.first, self.second):
            norm.running_mean = torch.full((4,), 0.3)
            norm.running_var = torch.tensor([0.5, 1.0, 2.0, 3.0])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.relu(self.first(self.conv(x)))
        z: Tensor = self.second(y)
        return z


def found(change: Callable[[TwoNorms], None]) -> list[dict[str, Any]]:
    model = TwoNorms()
    with torch.no_grad():
        change(model)
    program = fuseq.fuse(model, torch.rand(1, 3, 8, 8))
    assert program.report is not None
    warnings: list[dict[str, Any]] = program.report["warnings"]
    return warnings


def reset(model: TwoNorms) -> None:
    model.second.reset_running_stats()


def zero_weight(model: TwoNorms) -> None:
    model.first.weight[1:3] = 0


def zero_variance(model: TwoNorms) -> None:
    assert model.second.running_var is not None
    model.second.running_var[0] = 0


def tiny_variance(model: TwoNorms) -> None:
    assert model.second.running_var is not None
    model.second.running_var[2] = 1e-8


def tiny_variance_and_weight(model: TwoNorms) -> None:
    tiny_variance(model)
    model.second.weight[2] = 1e-3


def test_trained_statistics_need_no_word() -> None:
    assert found(lambda model: None) == []


def test_a_tiny_variance_with_a_tiny_weight_is_harmless() -> None:
    assert found(tiny_variance_and_weight) == []


@pytest.mark.parametrize(
    ("change", "kind", "node", "message"),
    [
        (reset, "unset", "second", "1 of 2 batch norms have statistics that look unset"),
        (zero_weight, "dead", "first", "2 channels are constant"),
        (zero_variance, "dead", "second", "1 channels are constant"),
        (tiny_variance, "extreme", "second", "1 channels have a variance below epsilon"),
    ],
)
def test_each_kind_names_its_norm(
    change: Callable[[TwoNorms], None], kind: str, node: str, message: str
) -> None:
    (warning,) = found(change)
    assert (warning["kind"], warning["node"], warning["nodes"]) == (kind, node, [node])
    assert warning["source"].startswith("test_statistics.py:")
    assert message in warning["message"]
    assert "recalibrate-bn" in warning["fix"]


def test_many_norms_make_one_warning() -> None:
    def reset_both(model: TwoNorms) -> None:
        model.first.reset_running_stats()
        model.second.reset_running_stats()

    (warning,) = found(reset_both)
    assert warning["nodes"] == ["first", "second"]
    assert warning["message"].startswith("2 of 2")


def test_batch_statistics() -> None:
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    program = fuseq.capture(nn.Sequential(norm, nn.ReLU()), torch.rand(2, 3, 8, 8))
    (warning,) = statistics_warnings(program)
    assert warning.kind == "batch"


def test_recalibration_takes_the_place_of_warnings() -> None:
    model, x = TwoNorms(), torch.rand(2, 3, 8, 8)
    reset(model)
    program = fuseq.fuse(model, x, passes="recalibrate-bn,fuse-affine", calibration=[x])
    assert program.report is not None
    assert program.report["warnings"] == []


def test_a_bundle_keeps_them(tmp_path: Any) -> None:
    model = TwoNorms()
    reset(model)
    x = torch.rand(1, 3, 8, 8)
    bundle = fuseq.lower(model, x, out=tmp_path / "out", passes="fuse-affine")
    assert [warning["kind"] for warning in bundle.manifest["warnings"]] == ["unset"]
