"""Parts of a concat: written straight onto its grid where nothing else reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq.program import Program
from fuseq.quant.executor import execute
from fuseq.quant.grid import Grid, bias_grid
from tests.backends.tflite_files import operators


class Joined(nn.Module):
    """A concat of parts that are tested and of a wide one."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = parts
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.up, self.each = nn.ConvTranspose2d(3, 4, 2, 2), nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.slopes, self.last = nn.PReLU(4), nn.LazyConv2d(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.leaky_relu(5 * self.b(x), 0.1)
        result: Tensor = self.last(torch.cat([*self.parts(self, x), wide], 1))
        return result


Parts: TypeAlias = Callable[[Joined, Tensor], list[Tensor]]

PARTS: dict[str, tuple[Parts, list[str]]] = {
    "convolution": (lambda m, x: [m.a(x)], []),
    "relu": (lambda m, x: [torch.relu(m.a(x))], []),
    "relu6": (lambda m, x: [F.relu6(4 * m.a(x))], []),
    "depthwise": (lambda m, x: [torch.relu(m.each(x))], []),
    "transposed": (lambda m, x: [torch.relu(m.up(F.max_pool2d(x, 2)))], []),
    "sum": (lambda m, x: [torch.relu(m.each(x) + x * x)], ["ADD", "MUL"]),
    "difference": (lambda m, x: [torch.relu(m.each(x) - x * x)], ["SUB", "MUL"]),
    "product": (lambda m, x: [torch.relu(m.each(x) * x)], ["MUL"]),
    "other clamp": (lambda m, x: [m.a(x).clamp(-0.2, 0.3)], ["MAXIMUM", "MINIMUM"]),
    "clamp of one end": (lambda m, x: [m.a(x).clamp(max=0.3)], ["MINIMUM"]),
    "leaky relu": (lambda m, x: [F.leaky_relu(m.a(x), 0.1)], []),
    "prelu": (lambda m, x: [m.slopes(m.a(x))], ["PRELU"]),
    "hard swish": (lambda m, x: [F.hardswish(m.a(x))], ["HARD_SWISH"]),
    "gelu": (lambda m, x: [F.gelu(m.a(x))], ["GELU"]),
    "mean": (lambda m, x: [m.a(x).mean((2, 3), True) * x[:, :1]], ["MEAN", "MUL", "STRIDED_SLICE"]),
    "much finer": (lambda m, x: [0.001 * m.each(x) * x], ["MUL"]),
}
"""Part -> operators besides the layers of weights and the wide part's."""

NOT_COUNTED = frozenset(
    "CONV_2D DEPTHWISE_CONV_2D TRANSPOSE_CONV CONCATENATION MAX_POOL_2D LEAKY_RELU".split()
)


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [4 * torch.rand(2, 3, 16, 16, generator=generator) - 2 for _ in range(3)]


def joined(parts: Parts, **options: Any) -> Program:
    data, model = batches(), Joined(parts).eval()
    model(data[0])
    return fuseq.quantize(model, data[0], target="tflite", calibration=data, **options)


def differing(program: Program, out: Path) -> tuple[list[int], list[str]]:
    """Integers apart on each kernel set, and the operators of the file."""
    bundle = fuseq.lower(program, backend="tflite", out=out)
    assert bundle.result is not None
    checks = [check for check in bundle.result.checks if check.id.startswith("parity-")]
    file = bundle.file("int8")
    assert file is not None
    return [int(check.metrics["differing"]) for check in checks], operators(file)


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_written_onto_the_grid_of_its_concat(name: str, tmp_path: Path) -> None:
    parts, kept = PARTS[name]
    found, codes = differing(joined(parts), tmp_path / "b")
    assert found == [0, 0]
    assert "QUANTIZE" not in codes
    assert set(codes) - NOT_COUNTED == set(kept)


@pytest.mark.parametrize("name", [name for name in PARTS if name not in ("prelu", "hard swish")])
def test_of_16_bits_too(name: str, tmp_path: Path) -> None:
    found, codes = differing(joined(PARTS[name][0], activation="int16"), tmp_path / "b")
    assert found == [0, 0]
    assert "QUANTIZE" not in codes


def test_what_others_read_and_fixed_grids_are_requantized(tmp_path: Path) -> None:
    def shared(m: Joined, x: Tensor) -> list[Tensor]:
        skip = torch.relu(m.each(x))
        return [torch.tanh(m.a(x)), skip, x * skip]

    program = joined(shared)
    found, codes = differing(program, tmp_path / "b")
    assert found == [0, 0]
    assert codes.count("QUANTIZE") == 2


def test_it_is_rounded_once() -> None:
    """Never more than half a step of the concat's grid off."""
    program = joined(PARTS["convolution"][0])
    table = program.quantization
    assert table is not None
    grid, real = table.grids["concat"], program.clone()
    real.quantization = None
    layer = real.module.get_submodule("a")
    for name in ("weight", "bias"):
        path = f"a.{name}"
        getattr(layer, name).data = table.grids[path].dequantize(table.integers[path])
    x = batches()[0]
    integers = execute(program, (x,)).integers
    with torch.no_grad():
        exact = layer(table.grids["x"].dequantize(integers["x"])) / grid.scale
    error = integers["concat"][:, :4] - grid.zero_point - exact
    assert error.abs().max() <= 0.5001


def test_ends_at_halves_are_cut_by_an_operator(tmp_path: Path) -> None:
    """127.5 steps and a zero point of -127: XNNPACK cuts at 0 there, LiteRT's own kernels at 1."""
    program = joined(lambda m, x: [F.relu6(8 * m.a(x))])
    table = program.quantization
    assert table is not None
    old = table.grids["concat"]
    new = Grid(torch.tensor(12 / 255), torch.tensor(-127, dtype=torch.int32), "int8")
    grids = {name: new if grid is old else grid for name, grid in table.grids.items()}
    grids["last.bias"] = bias_grid(new, grids["last.weight"], torch.zeros(3))
    program.quantization = replace(table, grids=grids)
    found, codes = differing(program, tmp_path / "b")
    assert found == [0, 0]
    assert {"MAXIMUM", "MINIMUM"} <= set(codes)


def test_a_wide_concat_does_not_widen_what_it_reads(tmp_path: Path) -> None:
    """Operators have one dtype: a part of 8 bits is requantized to a concat of 16."""
    program = joined(PARTS["relu"][0], wide=("concat",))
    table = program.quantization
    assert table is not None
    assert table.grids["relu"].dtype == "int8"
    assert table.grids["concat"].dtype == "int16"
    assert differing(program, tmp_path / "b")[0] == [0, 0]


def test_a_wide_part_does_not_widen_its_concat(tmp_path: Path) -> None:
    program = joined(PARTS["relu"][0], wide=("relu",))
    table = program.quantization
    assert table is not None
    assert table.grids["relu"].dtype == "int16"
    assert table.grids["concat"].dtype == "int8"
    assert differing(program, tmp_path / "b")[0] == [0, 0]


@pytest.mark.parametrize("learn_scales", [False, True])
@pytest.mark.parametrize("name", ["convolution", "relu6", "sum", "leaky relu", "transposed"])
def test_training_computes_the_integers_of_the_file(
    name: str, learn_scales: bool, tmp_path: Path
) -> None:
    data, model = batches(), Joined(PARTS[name][0]).train()
    model(data[0])
    qat = fuseq.qat.prepare(
        model, data[0], target="tflite", calibration=data, learn_scales=learn_scales
    )
    before = [p.detach().clone() for p in qat.parameters()]
    optimizer = torch.optim.SGD(qat.parameters(), lr=0.01)
    for x in data:
        optimizer.zero_grad()
        qat(x).square().mean().backward()
        optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, qat.parameters(), strict=True)]
    assert sum(moved) >= 6
    qat.stage(observing=False, weight_grids_frozen=True)
    program = fuseq.qat.finalize(qat)
    with torch.no_grad():
        assert torch.equal(qat.eval()(data[1]), program(data[1]))
    assert differing(program, tmp_path / "b")[0] == [0, 0]


def test_training_mode_gives_the_same_integers() -> None:
    """A ReLU6 cuts in the middle of the concat's grid, in training as in the executor."""
    data, model = batches(), Joined(PARTS["relu6"][0]).train()
    model(data[0])
    qat = fuseq.qat.prepare(model, data[0], target="tflite", calibration=data)
    qat.stage(observing=False, weight_grids_frozen=True)
    assert torch.equal(qat.train()(data[1]).detach(), qat.eval()(data[1]))


def test_a_part_is_a_feature_under_the_name_of_its_module() -> None:
    data, model = batches(), Joined(PARTS["prelu"][0]).train()
    model(data[0])
    qat = fuseq.qat.prepare(model, data[0], target="tflite", calibration=data)
    qat.stage(observing=False, weight_grids_frozen=True)
    _, value = fuseq.qat.Features(qat, "slopes")(data[0])
    program = fuseq.qat.finalize(qat)
    assert program.quantization is not None
    integers = fuseq.execute(program, (data[0],)).integers["concat"][:, :4]
    assert torch.equal(value, program.quantization.grids["concat"].dequantize(integers))
