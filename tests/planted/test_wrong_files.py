"""Wrong int8 files that parity with the executor must find, naming the value that is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import fuseq
from fuseq import plugins
from fuseq.equivalence.integers import file_parity, table_parity
from fuseq.program import Program

Edit = Callable[[np.ndarray], np.ndarray]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.first(x)))
        return y


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 3, 64, 64, generator=generator) for _ in range(2)]


@pytest.fixture(scope="module")
def program(batches: list[Tensor]) -> Program:
    torch.manual_seed(0)
    return fuseq.quantize(Net(), batches[0], target="onnx", calibration=batches)


@pytest.fixture(scope="module")
def file(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lowered") / "bundle"
    bundle = fuseq.lower(program, backend="onnx", out=out)
    assert bundle.result is not None
    assert bundle.result.passed
    written = bundle.file("int8")
    assert written is not None
    return written


def edited(file: Path, out: Path, node: str, operand: int, edit: Edit) -> Path:
    """A copy of a file in which one node's constant operand is a new, edited constant.

    Both halves of a quantizer are edited alike: an emitter that is wrong is wrong in both.
    """
    model = onnx.load(file)
    nodes = {n.name: n for n in model.graph.node}
    constants = {t.name: t for t in model.graph.initializer}
    before = nodes[node].input[operand]
    after = numpy_helper.from_array(edit(numpy_helper.to_array(constants[before])), "planted")
    model.graph.initializer.append(after)
    for name in (node, node.replace(".quantized", ".dequantized")):
        if name in nodes and nodes[name].input[operand] == before:
            nodes[name].input[operand] = "planted"
    onnx.save(model, out)
    return out


def one_more(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed.flat[0] += 1
    return changed


FAULTS: dict[str, tuple[str, int, Edit, str]] = {
    "zero point off by one": ("relu.quantized", 2, lambda a: a + np.uint8(1), "relu"),
    "zero point of the output off by one": (
        "second.dequantized", 2, lambda a: a + np.uint8(1), "second",
    ),
    "scale off by a thousandth": ("relu.quantized", 1, lambda a: a * np.float32(1.001), "relu"),
    "one weight off by one": ("first.weight.dequantized", 0, one_more, "relu"),
    "one bias off by one": ("second.bias.dequantized", 0, one_more, "second"),
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
def test_found_and_named(
    fault: str, program: Program, file: Path, batches: list[Tensor], tmp_path: Path
) -> None:
    node, operand, edit, wrong = FAULTS[fault]
    runner = plugins.load("runners", "onnx")
    inputs = (batches[0],)
    check, first = file_parity(program, runner(file), inputs)
    assert check.passed
    assert first is None
    planted = edited(file, tmp_path / "wrong.onnx", node, operand, edit)
    check, first = file_parity(program, runner(planted), inputs)
    assert not check.passed
    assert check.metrics["differing"] > 0
    assert first is not None
    assert first.node == wrong
    assert first.source.startswith("test_wrong_files.py:")


def one_step(array: np.ndarray) -> np.ndarray:
    return np.nextafter(array, np.float32(np.inf))


@pytest.mark.parametrize(
    ("node", "operand", "edit", "wrong"),
    [
        ("relu.quantized", 1, one_step, "relu"),
        ("second.bias.dequantized", 1, one_step, "second"),
        ("first.weight.dequantized", 0, one_more, "first"),
        ("relu.quantized", 2, lambda a: a + np.uint8(1), "relu"),
    ],
)
def test_parameters_differ_from_the_table(
    node: str, operand: int, edit: Edit, wrong: str, program: Program, file: Path, tmp_path: Path
) -> None:
    runner = plugins.load("runners", "onnx")
    check, first = table_parity(program, runner(file))
    assert check.passed
    assert first is None
    assert check.metrics["total"] > 300
    planted = edited(file, tmp_path / "wrong.onnx", node, operand, edit)
    check, first = table_parity(program, runner(planted))
    assert not check.passed
    assert check.metrics["differing"] > 0
    assert first is not None
    assert first.node == wrong


def test_check_names_the_value_too(program: Program, file: Path, tmp_path: Path) -> None:
    planted = edited(file, tmp_path / "wrong.onnx", *FAULTS["one bias off by one"][:3])
    assert fuseq.check(program, file).passed
    result = fuseq.check(program, planted)
    assert not result.passed
    assert result.first_divergence is not None
    assert result.first_divergence.node == "second"
    with pytest.raises(fuseq.FuseqError, match="FQ302"):
        result.raise_for_status()
