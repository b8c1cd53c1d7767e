"""Ops held to a step each, on integers that a test changes; no wheel needed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import fuseq
from fuseq.backends.qnn.op_steps import op_check, with_parts_of_concats
from fuseq.backends.qnn.patch import at_patch
from fuseq.program import Program
from fuseq.quant.executor import execute


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Tanh(), nn.Conv2d(4, 2, 1)
    )
    image = (torch.rand(1, 3, 80, 72),)
    return fuseq.quantize(net, image, calibration=[image])


@pytest.fixture
def shown(program) -> dict[str, np.ndarray]:
    integers = execute(program, program.example_inputs).integers
    return {name: value.numpy().copy() for name, value in integers.items()}


def test_equal_integers(program, shown) -> None:
    check, first = op_check("ops", "a <-> b", program, shown, program.example_inputs)
    assert check.passed
    assert first is None
    assert check.metrics == {
        "differing": 0, "total": sum(value.size for value in shown.values()), "max_lsb": 0
    }  # fmt: skip
    assert check.gate == {"max_lsb": 1}


def test_a_step_is_counted_where_it_arises(program, shown) -> None:
    shown["relu"][..., 0] = np.where(shown["relu"][..., 0] < 255, shown["relu"][..., 0] + 1, 254)
    check, _ = op_check("ops", "a <-> b", program, shown, program.example_inputs)
    moved = execute(
        program, program.example_inputs, given={"relu": torch.from_numpy(shown["relu"])}
    ).integers["_2"]
    behind = int((moved.numpy() != shown["_2"]).sum())
    assert behind > 0
    assert check.metrics["differing"] == shown["relu"][..., 0].size + behind
    assert check.passed == (int(np.abs(moved.numpy() - shown["_2"]).max()) <= 1)


def test_two_steps_name_the_first_op(program, shown) -> None:
    shown["tanh"][0, 0, 0, 0] ^= 2
    check, first = op_check("ops", "a <-> b", program, shown, program.example_inputs)
    assert not check.passed
    assert first is not None
    assert first.node == "tanh"
    assert check.metrics["max_lsb"] == 2


def test_nothing_shown_is_no_pass(program) -> None:
    check, _ = op_check("ops", "a <-> b", program, {}, program.example_inputs)
    assert not check.passed


def test_another_shape_is_no_pass(program, shown) -> None:
    [output] = program.outputs()
    shown[output.name] = shown[output.name][:, :1]
    check, first = op_check("ops", "a <-> b", program, shown, program.example_inputs)
    assert not check.passed
    assert first is not None
    assert first.node == output.name


def test_a_patch_is_the_same_function(program) -> None:
    patch = at_patch(program)
    (image,) = patch.example_inputs
    assert image.shape == (1, 3, 64, 64)
    assert [patch.shape(node) for node in patch.outputs()] == [(1, 2, 64, 64)]
    assert torch.equal(patch(image), program(image))
    assert program.example_inputs[0].shape == (1, 3, 80, 72)
    assert at_patch(patch) is patch


def test_a_program_of_one_size_stays_as_it_is() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 16), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))
    image = (torch.rand(1, 3, 90, 90),)
    program = fuseq.quantize(net, image, calibration=[image])
    assert at_patch(program) is program


class Shared(nn.Module):
    """A product and an activation on sums that a concat and something else read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cut = torch.relu(self.layer(x))
        product = 3 * torch.tanh(self.layer.weight.sum() + x.mean(1, True) * cut)
        return self.last(torch.cat([cut, product], 1)) + cut + product


def test_parts_of_a_concat_are_rounded_once() -> None:
    x = 4 * torch.rand(1, 3, 16, 16) - 2
    program = fuseq.quantize(Shared().eval(), x, target="qnn", calibration=[x])
    table = program.quantization
    assert table is not None
    ours = execute(program, (x,)).integers
    theirs = execute(with_parts_of_concats(program), (x,)).integers
    product = 3.0 * table.grids["tanh"].dequantize(ours["tanh"])
    wanted = table.grids["concat"].quantize(product)
    assert (theirs["concat"][:, 4:] - wanted).abs().max() <= 1  # near ties
    assert (theirs["concat"][:, 4:] != wanted).double().mean() < 0.01
    assert 1 <= (theirs["concat"] - ours["concat"])[:, :4].abs().max() <= 2
    assert all(torch.equal(theirs[name], ours[name]) for name in ("relu", "tanh", "mul_1"))
