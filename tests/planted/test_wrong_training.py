"""Faults between training and the file: each must be found, and the node that is wrong named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fuseq
from fuseq import plugins
from fuseq.equivalence.integers import file_parity, table_parity
from fuseq.program import Program
from fuseq.qat import QatModel
from fuseq.qat.gradients import limits
from fuseq.qat.model import STILL_OBSERVING
from fuseq.qat.straight_through import StraightThrough
from fuseq.quant.grid import Grid
from tests.qat.networks import batches, prepared, steps


@pytest.fixture
def model() -> QatModel:
    """Trained a little, everything frozen."""
    trained = prepared()
    steps(trained, batches())
    trained.stage(observing=False, weight_grids_frozen=True)
    return trained


def written(program: Program, out: Path) -> Path:
    bundle = fuseq.lower(program, out=out, calibration=batches())
    file = bundle.file("int8")
    assert file is not None
    return file


def apart(trained: Program, shipped: Program, out: Path) -> tuple[str, str]:
    """First node where one program's file differs from the table, and the integers, of another.

    Empty strings where nothing differs.
    """
    runner = plugins.load("runners", "onnx")(written(shipped, out))
    found = []
    for check, first in (
        table_parity(trained, runner),
        file_parity(trained, runner, (batches(1, seed=7)[0],)),
    ):
        assert check.passed == (first is None)
        found.append(first.node if first else "")
    return found[0], found[1]


def with_grid(program: Program, name: str, edit: Callable[[Grid], Grid]) -> Program:
    table = program.quantization
    assert table is not None
    grids = {**table.grids, name: edit(table.grids[name])}
    changed = dataclasses.replace(table, grids=grids)
    return dataclasses.replace(program, quantization=changed)


def test_what_was_trained_is_what_ships(model: QatModel, tmp_path: Path) -> None:
    program = fuseq.qat.finalize(model)
    assert apart(program, program, tmp_path / "out") == ("", "")


GRIDS: dict[str, tuple[str, Callable[[Grid], Grid], str]] = {
    "a wrong zero point": (
        "stem", lambda g: Grid(g.scale, g.zero_point + 1, g.dtype), "stem",
    ),
    "a scale off by its last bit": (
        "add_1", lambda g: Grid(torch.nextafter(g.scale, g.scale * 2), g.zero_point, g.dtype),
        "add_1",
    ),
    "a bias at the scale of another layer": (
        "gate.bias", lambda g: Grid(g.scale * 2, g.zero_point, g.dtype, g.axis), "gate",
    ),
    "weight scales of other channels": (
        "head.weight", lambda g: Grid(g.scale.flip(0), g.zero_point, g.dtype, g.axis), "head",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", GRIDS)
def test_a_wrong_parameter_is_named(fault: str, model: QatModel, tmp_path: Path) -> None:
    name, edit, node = GRIDS[fault]
    program = fuseq.qat.finalize(model)
    assert apart(program, with_grid(program, name, edit), tmp_path / "out")[0] == node


def test_a_table_from_before_the_last_step_is_stale(model: QatModel, tmp_path: Path) -> None:
    stale = fuseq.qat.finalize(model)
    model.stage(observing=True, weight_grids_frozen=False)
    steps(model, batches(1, seed=3))
    assert apart(fuseq.qat.finalize(model), stale, tmp_path / "out")[0] == "x"


def test_weights_changed_after_finalize_are_named(model: QatModel, tmp_path: Path) -> None:
    shipped = fuseq.qat.finalize(model)
    with torch.no_grad():
        weight = model.program.module.get_parameter("gate.weight")
        weight.copy_(weight.flip(0))
    table, integers = apart(fuseq.qat.finalize(model), shipped, tmp_path / "out")
    assert (table, integers) == ("gate", "gate")


def test_an_observer_left_on_is_said_in_the_program() -> None:
    model = prepared()
    assert STILL_OBSERVING in fuseq.qat.finalize(model).origin.notes
    model.stage(observing=False, weight_grids_frozen=True)
    assert STILL_OBSERVING not in fuseq.qat.finalize(model).origin.notes


def test_grids_that_an_observer_moved_after_the_check_are_named(
    model: QatModel, tmp_path: Path
) -> None:
    checked = fuseq.qat.finalize(model)
    model.stage(observing=True, weight_grids_frozen=True)
    model(3 * batches(1)[0])
    assert apart(checked, fuseq.qat.finalize(model), tmp_path / "out")[0] == "x"


def test_an_activation_that_is_not_absorbed_is_named(model: QatModel, tmp_path: Path) -> None:
    """Its producer then has integers of its own, which nothing in the table explains."""
    program = fuseq.qat.finalize(model)
    table = program.quantization
    assert table is not None
    ((producer, activation),) = [(p, a) for p, a in table.absorbed.items() if a == "relu"]
    grid = table.grids[activation]
    forgotten = dataclasses.replace(
        table,
        absorbed={p: a for p, a in table.absorbed.items() if p != producer},
        grids={**table.grids, producer: Grid(grid.scale, grid.zero_point + 99, grid.dtype)},
    )
    shipped = dataclasses.replace(program, quantization=forgotten)
    assert apart(program, shipped, tmp_path / "out")[0] == producer


def test_a_training_forward_that_adds_otherwise_is_named(
    model: QatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halves go up instead of to the even integer: features of both forwards tell where."""
    x = batches(1, seed=7)[0]
    model.wanted = frozenset(model.structure.group)

    def first_apart() -> str:
        model.eval()(x)
        expected = dict(model.features)
        model.train()(x)
        wrong = (name for name, y in model.features.items() if not torch.equal(y, expected[name]))
        return next(wrong, "")

    def add(
        self: StraightThrough, a: Tensor, grid_a: Grid, b: Tensor, grid_b: Grid, grid: Grid
    ) -> Tensor:
        real = a * grid_a.scale + b * grid_b.scale
        return torch.floor(real / grid.scale + 0.501).clamp(*limits(grid))

    with torch.no_grad():
        assert first_apart() == ""
        monkeypatch.setattr(StraightThrough, "add", add)
        assert first_apart() == "add_1"
