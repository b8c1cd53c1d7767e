"""Wrong files with values of 16 bits: float sums may differ by a step, faults must show still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fuseq
from fuseq import plugins
from fuseq.bundle import Bundle
from fuseq.equivalence import Check
from fuseq.equivalence.integers import file_parity, table_parity
from fuseq.program import Program
from tests.planted.test_wrong_files import Edit, Net, edited, one_more


def bundle_of(out: Path, **options: Any) -> tuple[Program, Bundle, list[Tensor]]:
    torch.manual_seed(0)
    batches = [torch.rand(1, 3, 64, 64) for _ in range(2)]
    program = fuseq.quantize(Net(), batches[0], calibration=batches, **options)
    bundle = fuseq.lower(program, backend="onnx", out=out)
    assert bundle.result is not None
    bundle.result.raise_for_status()
    return program, bundle, batches


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Bundle, list[Tensor]]:
    out = tmp_path_factory.mktemp("everywhere") / "bundle"
    return bundle_of(out, activation="uint16")


@pytest.fixture(scope="module")
def first_only(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Bundle, list[Tensor]]:
    """8 bits in, 16 bits between, 8 bits out."""
    out = tmp_path_factory.mktemp("first") / "bundle"
    return bundle_of(out, wide=("first",))


FAULTS: dict[str, tuple[str, int, Edit, str]] = {
    "zero point off by two": ("relu.quantized", 2, lambda a: a + np.uint16(2), "relu"),
    "scale off by a thousandth": ("relu.quantized", 1, lambda a: a * np.float32(1.001), "relu"),
    "one weight off by one": ("first.weight.dequantized", 0, one_more, "relu"),
    "weight scales of other channels": (
        "second.weight.dequantized", 1, lambda a: np.ascontiguousarray(a[::-1]), "second",
    ),
    "bias of other channels": (
        "first.bias.dequantized", 0, lambda a: np.ascontiguousarray(a[::-1]), "relu",
    ),
    "kernel mirrored": (
        "second.weight.dequantized", 0, lambda a: np.ascontiguousarray(a[..., ::-1]), "second",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", list(FAULTS))
def test_parity_finds_and_names_it(
    fault: str, everywhere: tuple[Program, Bundle, list[Tensor]], tmp_path: Path
) -> None:
    program, bundle, batches = everywhere
    node, operand, edit, wrong = FAULTS[fault]
    file = bundle.file("int8")
    assert file is not None
    planted = edited(file, tmp_path / "wrong.onnx", node, operand, edit)
    check, first = file_parity(program, plugins.load("runners", "onnx")(planted), (batches[0],))
    assert not check.passed
    assert check.metrics["float_max_lsb"] > 1
    assert first is not None
    assert first.node == wrong


@pytest.mark.parametrize(
    ("node", "operand", "edit", "wrong"),
    [
        ("relu.quantized", 2, lambda a: a + np.uint16(1), "relu"),
        ("second.bias.dequantized", 0, one_more, "second"),
        ("relu.quantized", 1, lambda a: np.nextafter(a, np.float32(1)), "relu"),
    ],
)
def test_what_changes_a_step_is_found_in_the_table(
    node: str,
    operand: int,
    edit: Edit,
    wrong: str,
    everywhere: tuple[Program, Bundle, list[Tensor]],
    tmp_path: Path,
) -> None:
    program, bundle, _ = everywhere
    file = bundle.file("int8")
    assert file is not None
    planted = edited(file, tmp_path / "wrong.onnx", node, operand, edit)
    check, first = table_parity(program, plugins.load("runners", "onnx")(planted))
    assert not check.passed
    assert first is not None
    assert first.node == wrong


def test_check_of_program_and_file_goes_op_by_op(
    first_only: tuple[Program, Bundle, list[Tensor]], tmp_path: Path
) -> None:
    program, bundle, _ = first_only
    file = bundle.file("int8")
    assert file is not None
    for pair in ((program, file), (file, program)):
        (check,) = fuseq.check(*pair).checks
        assert check.passed
        assert check.metrics["differing"] == 0
        assert check.metrics["float_values"] == 2  # both convolutions have 16 bits on one side
    node, operand, edit, wrong = FAULTS["kernel mirrored"]
    planted = edited(file, tmp_path / "wrong.onnx", node, operand, edit)
    result = fuseq.check(program, planted)
    assert not result.passed
    assert result.first_divergence is not None
    assert result.first_divergence.node == wrong


def golden(bundle: Bundle) -> Check:
    [found] = [check for check in fuseq.check(bundle.path).checks if check.id == "golden"]
    return found


def test_recorded_outputs_are_near_and_those_of_another_network_are_not(
    everywhere: tuple[Program, Bundle, list[Tensor]], tmp_path: Path
) -> None:
    _, bundle, _ = everywhere
    assert [entry["rounded"] for entry in bundle.manifest["outputs"]] == [True]
    check = golden(bundle)
    assert (check.kind, check.passed) == ("fidelity", True)
    assert check.metrics["sqnr_db"] > check.gate["sqnr_db_min"] + 20
    _, narrow, _ = bundle_of(tmp_path / "narrow")
    assert [entry["rounded"] for entry in narrow.manifest["outputs"]] == [False]
    check = golden(narrow)
    assert (check.kind, check.passed) == ("parity", True)


def test_recorded_outputs_find_a_runtime_that_is_wrong(
    everywhere: tuple[Program, Bundle, list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As wrong as a kernel that drops the lower half of 16 bits."""
    _, bundle, _ = everywhere
    runner = type(plugins.load("backends", "onnx")().runner(bundle.path / "model.int8.qdq.onnx"))
    run = runner.__call__

    def coarse(self: object, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        outputs: tuple[np.ndarray, ...] = run(self, *inputs)
        if self.quantized:  # type: ignore[attr-defined]
            step = (outputs[0].max() - outputs[0].min()) / 60
            outputs = (np.rint(outputs[0] / step) * step,)
        return outputs

    monkeypatch.setattr(runner, "__call__", coarse)
    check = golden(bundle)
    assert not check.passed
