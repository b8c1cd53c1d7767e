"""What float32 rounding explains of a difference in steps, and that it explains no fault."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fuseq
from fuseq import plugins
from fuseq.bundle import Bundle
from fuseq.equivalence.compare import parity
from fuseq.equivalence.float_sums import CONVERSIONS, DEVIATIONS, allowed_steps
from fuseq.equivalence.integers import file_parity
from fuseq.program import Program
from fuseq.rounding import UNIT
from tests.planted.test_wrong_files import edited


class Differences(nn.Module):
    """Differences of neighbours that are nearly equal: sums far smaller than their terms."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        kind = partial(nn.ConvTranspose2d, padding=2) if transposed else nn.Conv2d
        self.first: nn.Module = kind(3, 8, 3, bias=False)
        self.second = nn.Conv2d(8, 4, 1)
        kernel = torch.tensor([[1.0, 0.0, -1.0], [-1.0, 0.0, 1.0], [1.0, 0.0, -1.0]])
        with torch.no_grad():
            weight = self.first.get_parameter("weight")
            weight.copy_(kernel.expand_as(weight))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        return y


def flat(spread: float, seed: int) -> Tensor:
    noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return 0.9 + spread * noise


def lowered(
    spread: float, out: Path, *, transposed: bool = False, **options: object
) -> tuple[Program, Bundle]:
    torch.manual_seed(0)
    data = [flat(spread, seed) for seed in range(3)]
    captured = fuseq.capture(Differences(transposed).eval(), data[0])
    program = fuseq.quantize(captured, calibration=data, **options)  # type: ignore[arg-type]
    return program, fuseq.lower(program, out=out)


@pytest.mark.parametrize("transposed", [False, True])
def test_cancelling_sums_may_differ_by_more_steps(transposed: bool, tmp_path: Path) -> None:
    program, bundle = lowered(0.001, tmp_path / "out", transposed=transposed, activation="uint16")
    assert bundle.result is not None
    assert bundle.result.passed
    checks = [check for check in bundle.result.checks if check.id.startswith("parity-")]
    assert max(check.metrics["float_max_lsb"] for check in checks) > 1, "nothing was tested"
    assert all(check.gate["float_max_lsb"] < 65535 / 100 for check in checks)
    file = bundle.file("int8")
    assert file is not None
    planted = edited(
        file,
        tmp_path / "wrong.onnx",
        "first.weight.dequantized",
        0,
        lambda a: a - np.int8(a == 127),
    )
    runner = plugins.load("runners", "onnx")
    check, first = file_parity(program, runner(planted), (flat(0.001, 0),))
    assert not check.passed
    assert first is not None
    assert first.node == "relu"


def test_sums_that_calibration_saw_as_zero_may_be_anything(tmp_path: Path) -> None:
    """A float sum of such terms is noise, on a grid with the smallest of scales."""
    program, bundle = lowered(0.0, tmp_path / "out", wide=("first",))
    assert program.quantization is not None
    assert program.quantization.grids["relu"].scale < 1e-6
    assert bundle.result is not None
    assert bundle.result.passed


@pytest.mark.parametrize("count", [9, 64, 1000])
def test_no_sum_in_any_order_errs_by_more_than_the_bound(count: int) -> None:
    random = np.random.default_rng(count)
    terms = random.uniform(-1, 1, (4000, count)).astype(np.float32)
    terms[:, 1::2] = -terms[:, ::2][:, : count // 2] * np.float32(0.999)  # they cancel
    for order in (np.arange(count), np.argsort(terms[0]), random.permutation(count)):
        sums = np.zeros(len(terms), dtype=np.float32)
        for k in order:
            sums = sums + terms[:, k]
        errors = np.abs(sums - terms.astype(np.float64).sum(1))
        largest = np.abs(terms.astype(np.float64)).sum(1)
        assert (errors <= DEVIATIONS * UNIT * largest * math.sqrt(count + CONVERSIONS)).all()


def test_one_step_needs_no_explanation_and_other_ops_get_no_more() -> None:
    program = fuseq.quantize(
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.ELU(), nn.Conv2d(3, 3, 1)).eval(),
        torch.rand(1, 3, 8, 8),
        calibration=[torch.rand(1, 3, 8, 8)],
    )
    assert allowed_steps(program, {}, {"elu": 1}) == {"elu": 1}
    values = fuseq.execute(program, (torch.rand(1, 3, 8, 8),)).integers
    assert allowed_steps(program, values, {"elu": 7}) == {"elu": 1}


def test_values_that_are_all_computed_in_float_are_compared_too() -> None:
    assert parity("p", "a <-> b", [], [], rounded={"a": 1}).passed
    assert not parity("p", "a <-> b", [], [], rounded={"a": 2}).passed
    assert not parity("p", "a <-> b", [], []).passed


def test_parity_reports_what_breaks_its_limit_first() -> None:
    exact = [np.array([1, 2])]
    check = parity("p", "a <-> b", exact, exact, rounded={"a": 5, "b": 2}, allowed={"a": 9})
    assert not check.passed
    assert check.metrics["float_max_lsb"] == 2
    assert check.gate["float_max_lsb"] == 1
    check = parity("p", "a <-> b", exact, exact, rounded={"a": 5, "b": 1}, allowed={"a": 9})
    assert check.passed
    assert check.metrics["float_max_lsb"] == 5
    assert check.gate["float_max_lsb"] == 9
