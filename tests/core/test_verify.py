"""The structural verifier and the float64 twin."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq import verify
from fuseq.program import Program


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.gain = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x)) * self.gain
        return y


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return fuseq.capture(Net(), torch.randn(1, 3, 8, 8))


def test_captured_programs_are_well_formed(program: Program) -> None:
    assert verify.problems(program) == []


def test_perturbation_moves_everything(program: Program) -> None:
    twin = program.twin(torch.float64)
    before = {name: value.clone() for name, value in twin.module.state_dict().items()}
    verify.perturb(twin)
    after = twin.module.state_dict()
    for name, value in before.items():
        if value.is_floating_point():
            assert (after[name] != value).all(), name
    variance = next(v for name, v in after.items() if name.endswith("running_var"))
    assert (variance > 0).all()
    gamma = after["norm.weight"] / before["norm.weight"]
    assert ((gamma >= 0.5) & (gamma <= 1.5)).all()


def test_perturbation_is_reproducible_and_seeded(program: Program) -> None:
    def perturbed(seed: int) -> dict[str, Tensor]:
        twin = program.twin(torch.float64)
        verify.perturb(twin, seed)
        state: dict[str, Tensor] = twin.module.state_dict()
        return state

    first, again, other = perturbed(0), perturbed(0), perturbed(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv.weight"], other["conv.weight"])


def test_twin_leaves_the_program_alone(program: Program) -> None:
    twin = program.twin(torch.float64)
    assert {p.dtype for p in twin.module.parameters()} == {torch.float64}
    assert {p.dtype for p in program.module.parameters()} == {torch.float32}
    assert program.example_inputs[0].dtype == torch.float32


def test_probes_have_an_odd_border(program: Program) -> None:
    first, second = (x.shape for (x,) in verify.probe_inputs(program))
    assert first == (1, 3, 8, 8)
    assert any(n % 2 for n in second[2:])


def test_distance(program: Program) -> None:
    probes = verify.probe_inputs(program)
    twin, same, moved = (program.twin(torch.float64) for _ in range(3))
    verify.perturb(moved)
    assert verify.distance(twin, same, probes) == 0.0
    assert verify.distance(twin, moved, probes) > 1e-3


@pytest.mark.parametrize(
    ("actual", "expected", "distance"),
    [
        (torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]), 0.25),
        (torch.ones(2), torch.ones(3), math.inf),
        (torch.tensor([math.nan]), torch.ones(1), math.inf),
        (torch.zeros(0), torch.zeros(0), 0.0),
        (torch.zeros(2), torch.zeros(2), 0.0),
    ],
)
def test_relative_max(actual: Tensor, expected: Tensor, distance: float) -> None:
    assert verify.relative_max(actual, expected) == distance


def test_probes_are_sizes_at_which_the_values_work_too() -> None:
    """Unpooling an odd map fails on some of its values, not on its shape or on zeros."""

    class Unpool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            pooled, where = F.max_pool2d(self.norm(x), 2, return_indices=True)
            return F.max_unpool2d(pooled, where, [2, 2])

    program = fuseq.capture(Unpool().eval(), torch.rand(1, 3, 32, 32))
    for inputs in verify.probe_inputs(program):
        program.twin(torch.float64).module(*inputs)
