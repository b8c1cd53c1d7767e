"""Every rule of the lint: a program that breaks it, named with its code; and none that does not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq import ops
from fuseq.backends.qnn import QnnBackend
from fuseq.backends.qnn.lint import RULES, refusals
from fuseq.backends.qnn.lint.meanings import MEANINGS
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.quant.grid import Grid
from tests.backends.test_qnn_files import Between

ROOT = Path(__file__).parents[2]
IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.3


class Twice(nn.Module):
    def __init__(self, both: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.layer, self.both = nn.Conv2d(3, 4, 3, padding=1), both

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.both(self.layer(x))


def quantized(
    function: Callable[..., Tensor], *layers: nn.Module, activation: str | None = None
) -> Program:
    model = Between(function, *layers).eval()
    data = [IMAGE]
    return fuseq.quantize(model, IMAGE, target="qnn", calibration=data, activation=activation)


def legalized(model: nn.Module) -> Program:
    """What the lint sees before anything is quantized."""
    from fuseq.passes.legalize import Legalize

    profile = QnnBackend.profile
    return fuseq.Pipeline([Legalize(profile)]).run(fuseq.fuse(model.eval(), IMAGE))


def with_grid(program: Program, name: str, grid: Grid) -> Program:
    """The same program; a parameter, or the value of the first op of a name, is on another grid."""
    values = [node.name for node in program.graph.nodes if ops.name_of(program, node) == name]
    name = values[0] if values else name
    table = program.quantization
    assert table is not None
    program.quantization = replace(table, grids={**table.grids, name: grid})
    return program


def grid(scale: float, zero_point: int, dtype: str = "uint8") -> Grid:
    return Grid(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), dtype)


def per_channel(program: Program, name: str, axis: int, zero_point: int = 0) -> Grid:
    layer = program.module.get_submodule(name)
    assert isinstance(layer.weight, Tensor)
    count = layer.weight.shape[axis]
    scale = torch.linspace(0.001, 0.002, count)
    return Grid(scale, torch.full((count,), zero_point, dtype=torch.int32), "int8", axis)


def clip() -> Program:
    """The grid touches one bound and exceeds the other."""
    return with_grid(quantized(lambda y: y.clamp(0.0, 1.0)), "clamp", grid(2 / 255, 0))


def half_clip() -> Program:
    return with_grid(quantized(lambda y: y.clamp(0.0, 1.0)), "clamp", grid(1.5 / 255, 85))


def symmetric_relu() -> Program:
    return with_grid(quantized(torch.relu), "relu", grid(1 / 127, 128))


def wide_relu6() -> Program:
    return with_grid(quantized(F.relu6), "clamp", grid(8 / 255, 0))


def bounds_without_zero() -> Program:
    return quantized(lambda y: y.clamp(0.1, 0.3))


def signed_softmax() -> Program:
    return with_grid(quantized(lambda y: y.softmax(1)), "softmax", grid(1 / 256, 0, "int8"))


def free(name: str, function: Callable[[Tensor], Tensor]) -> Callable[[], Program]:
    def build() -> Program:
        program = quantized(function, activation="uint16")
        return with_grid(program, name, grid(1 / 50000, 12, "uint16"))

    return build


def pad() -> Program:
    return with_grid(
        quantized(lambda y: F.pad(y, (1, 1, 1, 1), mode="reflect")), "pad", grid(0.02, 100)
    )


def grouped() -> Program:
    program = quantized(lambda y, up: up(y), nn.ConvTranspose2d(8, 8, 2, 2, groups=4))
    return with_grid(program, "layers.0.weight", per_channel(program, "layers.0", 1))


def scales_along_the_sum() -> Program:
    program = quantized(
        lambda y, linear: linear(y.flatten(2)).reshape(1, 8, 4, 4), nn.Linear(256, 16)
    )
    return with_grid(program, "layers.0.weight", per_channel(program, "layers.0", 1))


def resize(function: Callable[[Tensor], Tensor]) -> Callable[[], Program]:
    def build() -> Program:
        program = quantized(function)
        nearest = ops.count(program, "interpolate_nearest")
        return with_grid(
            program, "interpolate_nearest" if nearest else "interpolate", grid(0.02, 100)
        )

    return build


def weighted_norm() -> Program:
    return fuseq.fuse(Between(lambda y, norm: norm(y), nn.InstanceNorm2d(8, affine=True)), IMAGE)


def kept() -> Program:
    model, data = Between(torch.sigmoid), [IMAGE]
    return fuseq.quantize(model, IMAGE, target="qnn", calibration=data, keep=["sigmoid"])


def of(function: Callable[[Tensor], Tensor]) -> Callable[[], Program]:
    return lambda: legalized(Between(function))


def group_norm() -> Program:
    return legalized(Between(lambda y, norm: norm(y), nn.GroupNorm(2, 8)))


def signed(name: str, dtype: str, function: Callable[[Tensor], Tensor]) -> Callable[[], Program]:
    return lambda: with_grid(quantized(function), name, grid(0.01, 0, dtype))


def wide_prelu() -> Program:
    layers = (nn.ConvTranspose2d(8, 8, 2, 2), nn.PReLU(8))
    return quantized(lambda y, up, slopes: slopes(up(y)), *layers, activation="uint16")


def mixed() -> Program:
    model, data = Between(torch.tanh), [IMAGE]
    return fuseq.quantize(model, IMAGE, target="qnn", calibration=data, wide=["tanh"])


def unsigned_weight() -> Program:
    program = quantized(torch.tanh)
    weight = replace(per_channel(program, "last", 0), dtype="uint8")
    return with_grid(program, "last.weight", weight)


def asymmetric() -> Program:
    program = quantized(torch.tanh)
    return with_grid(program, "last.weight", per_channel(program, "last", 0, zero_point=3))


def wrong_axis() -> Program:
    program = quantized(torch.tanh)
    return with_grid(program, "last.weight", per_channel(program, "last", 1))


BROKEN: list[tuple[str, Callable[[], Program]]] = [
    ("QNN101", clip),
    ("QNN101", half_clip),
    ("QNN101", symmetric_relu),
    ("QNN101", wide_relu6),
    ("QNN101", bounds_without_zero),
    ("QNN102", signed_softmax),
    ("QNN103", free("sigmoid", torch.sigmoid)),
    ("QNN103", free("tanh", torch.tanh)),
    ("QNN103", free("hardsigmoid", F.hardsigmoid)),
    ("QNN104", pad),
    ("QNN105", grouped),
    ("QNN106", scales_along_the_sum),
    ("QNN107", of(lambda y: y.abs().log())),
    ("QNN107", of(lambda y: y.cumsum(1))),
    ("QNN108", of(lambda y: F.avg_pool2d(y, 3, 2, ceil_mode=True))),
    ("QNN201", resize(lambda y: F.interpolate(y, scale_factor=2).tanh())),
    ("QNN201", resize(lambda y: F.interpolate(y, scale_factor=2, mode="bilinear"))),
    ("QNN202", weighted_norm),
    ("QNN203", of(lambda y: y * y.sum(1, keepdim=True))),
    ("QNN203", of(F.selu)),
    ("QNN203", of(lambda y: F.threshold(y, 0.5, 0.0))),
    ("QNN203", of(lambda y: y / y.norm(dim=1, keepdim=True))),
    ("QNN204", kept),
    ("QNN204", of(lambda y: torch.rsqrt(y * y + 1.0))),
    ("QNN301", lambda: fuseq.capture(Between(lambda y: y.reshape(1, 8, y.shape[3], -1)), IMAGE)),
    ("QNN303", of(F.mish)),
    ("QNN303", of(F.celu)),
    ("QNN303", of(F.softsign)),
    ("QNN303", of(torch.erf)),
    ("QNN303", of(torch.exp)),
    ("QNN303", group_norm),
    ("QNN304", signed("tanh", "int16", torch.tanh)),
    ("QNN305", signed("leaky_relu", "int8", lambda y: F.leaky_relu(y.tanh(), 0.1))),
    ("QNN306", wide_prelu),
    ("QNN307", mixed),
    ("QNN308", unsigned_weight),
    ("QNN309", asymmetric),
    ("QNN310", wrong_axis),
    ("QNN311", lambda: legalized(Twice(lambda y: (y, y)))),
    ("QNN302", lambda: legalized(Twice(lambda y: (y, y.argmax(1))))),
]


@pytest.mark.parametrize(
    ("code", "build"), BROKEN, ids=[f"{code}-{i}" for i, (code, _) in enumerate(BROKEN)]
)
def test_what_is_refused(code: str, build: Callable[[], Program]) -> None:
    found = refusals(build())
    assert code in {refusal.reason.split(":")[0] for refusal in found}, found
    for refusal in found:
        assert refusal.fix
        assert re.match(r"test_qnn_\w+\.py:\d+$", refusal.source) or refusal.node in ("x", "layer")


def test_every_rule_is_broken_here() -> None:
    assert {code for code, _ in BROKEN} == set(RULES)


def test_every_rule_is_described() -> None:
    page = (ROOT / "docs/qnn.md").read_text()
    rows = re.findall(r"^\| `(QNN\d+)` \| (.*?) \| (.*?) \|$", page, re.M)
    assert {code: (found, would) for code, found, would in rows} == MEANINGS
    assert list(MEANINGS) == list(RULES)


def test_what_is_computed_is_described() -> None:
    page = (ROOT / "docs/qnn.md").read_text().split("## What is computed\n")[1].split("\n## ")[0]
    own, same, _ = (
        page.split(": ", 1)[1].split("On the grid of their input: ")[0],
        *page.split("On the grid of their input: ")[1].split(". ", 1),
    )
    assert set(re.findall(r"`(\w+)`", own)) == QnnBackend.profile.integer
    assert set(re.findall(r"`(\w+)`", same)) == QnnBackend.profile.same_grid


def test_absorbed_activations_are_described() -> None:
    page = (ROOT / "docs/qnn.md").read_text().split("## Activations on the sums")[1]
    rows = re.findall(r"^\| (`\w+`.*?) \| (`\w+`.*?) \|$", page.split("## ")[0], re.M)
    described = {
        activation: set(re.findall(r"\w+", makers))
        for activations, makers in rows
        for activation in re.findall(r"\w+", activations)
    }
    assert described == QnnBackend.profile.absorbed


def test_lower_names_all_of_it_and_writes_nothing(tmp_path: Path) -> None:
    model = Between(lambda y: F.selu(F.mish(y)).clamp(0.1, 0.3))
    with pytest.raises(FuseqError, match=r"QNN303(.|\n)*QNN203") as caught:
        fuseq.lower(model, IMAGE, backend="qnn", out=tmp_path / "out", calibration=[IMAGE])
    assert caught.value.code == "FQ501"
    assert not (tmp_path / "out").exists()
