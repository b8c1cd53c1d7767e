"""The contract of passes: what the pipeline guarantees, and what it says when one breaks it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import fuseq
from fuseq import ops
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.rewrite import (
    Approximates,
    NewFunction,
    Pass,
    Pipeline,
    Promise,
    SameFunction,
    apply,
    split_by_promise,
)
from fuseq.text import to_text


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.conv(x)) * 1
        return torch.relu(y)


def no_batch_norm(program: Program) -> str | None:
    found = ops.count(program, "batch_norm")
    return f"{found} batch norms are left" if found else None


@dataclass(frozen=True)
class DropUnitMul(Pass):
    """Remove multiplications by one."""

    name: ClassVar[str] = "drop-unit-mul"
    promise: ClassVar[Promise] = SameFunction()

    def run(self, program: Program) -> int:
        dropped = 0
        for node in program.graph.nodes:
            if ops.name_of(program, node) == "mul" and node.args[1] == 1.0:
                node.replace_all_uses_with(node.all_input_nodes[0])
                program.note(f"dropped {node.name}")
                dropped += 1
        return dropped


@dataclass(frozen=True)
class Scale(Pass):
    """Multiply the last convolution's weights."""

    name: ClassVar[str] = "scale"
    promise: ClassVar[Promise] = Approximates(max_rel=0.01)

    by: float = 1.0
    mode: str = "weights"
    seen: list[int] = dataclasses.field(default_factory=list, repr=False)

    def run(self, program: Program) -> int:
        for node in program.graph.nodes:
            if ops.name_of(program, node) == "conv2d":
                layer = program.get(node)
                assert isinstance(layer, nn.Conv2d)
                layer.weight.data.mul_(self.by)
        return 1


@dataclass(frozen=True)
class Zero(Scale):
    name: ClassVar[str] = "zero"
    promise: ClassVar[Promise] = NewFunction("it is a test")
    by: float = 0.0


@dataclass(frozen=True)
class Requiring(DropUnitMul):
    name: ClassVar[str] = "requiring"
    requires = (no_batch_norm,)


@dataclass(frozen=True)
class Ensuring(DropUnitMul):
    name: ClassVar[str] = "ensuring"
    ensures = (no_batch_norm,)


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return fuseq.capture(Net(), torch.randn(1, 3, 8, 8))


def test_before_and_after(program: Program) -> None:
    before = """\
%x = input() : f32[1,3,8,8]
%conv = conv2d(%x) channels=3->4 kernel=3x3 padding=(1, 1) : f32[1,4,8,8]
%norm = batch_norm(%conv) eps=1e-05 : f32[1,4,8,8]
%mul = mul(%norm, 1) : f32[1,4,8,8]
%relu = relu(%mul) : f32[1,4,8,8]
return %relu
"""
    after = """\
%x = input() : f32[1,3,8,8]
%conv = conv2d(%x) channels=3->4 kernel=3x3 padding=(1, 1) : f32[1,4,8,8]
%norm = batch_norm(%conv) eps=1e-05 : f32[1,4,8,8]
%relu = relu(%norm) : f32[1,4,8,8]
return %relu
"""
    assert to_text(program) == before
    assert to_text(apply(DropUnitMul(), program)) == after
    assert to_text(program) == before


def test_record(program: Program) -> None:
    result = Pipeline([DropUnitMul(), DropUnitMul()]).run(program)
    first, second = result.history
    assert (first.name, first.rewrites, first.details) == ("drop-unit-mul", 1, ("dropped mul",))
    assert (second.rewrites, second.details) == (0, ())
    assert first.error == 0.0
    assert program.history == ()


def test_promise_of_an_approximation(program: Program) -> None:
    error = apply(Scale(by=1.001), program).history[-1].error
    assert error is not None
    assert 1e-5 < error <= 0.01
    with pytest.raises(FuseqError) as broken:
        apply(Scale(by=2.0), program)
    assert broken.value.code == "FQ301"
    assert broken.value.exit_code == 1
    assert broken.value.what == "pass 'scale' broke its promise Approximates(max_rel=0.01)"


def test_new_functions_are_not_proved(program: Program) -> None:
    assert apply(Zero(), program).history[-1].error is None


def test_a_pipeline_is_compared_with_what_changes_values_on_purpose(program: Program) -> None:
    before, same = split_by_promise([Scale(by=1.001), DropUnitMul(), Zero()], program)
    assert same == [DropUnitMul()]
    assert [record.name for record in before.history] == ["scale{by=1.001}", "zero"]


def test_the_given_program_is_untouched(program: Program) -> None:
    x = torch.randn(1, 3, 8, 8)
    expected = program(x)
    changed = apply(Zero(), program)
    assert torch.equal(program(x), expected)
    assert not torch.equal(changed(x), expected)


def test_requires(program: Program) -> None:
    with pytest.raises(FuseqError) as refused:
        Pipeline([DropUnitMul(), Requiring()]).run(program)
    assert str(refused.value) == (
        "error[FQ201]: pass 'requiring' requires no batch norm: 1 batch norms are left\n"
        "  why: passes run before it: drop-unit-mul\n"
        "  help: change the order in --passes"
    )


def test_ensures_is_asked_of_the_result(program: Program) -> None:
    with pytest.raises(FuseqError) as refused:
        apply(Ensuring(), program)
    assert refused.value.code == "FQ205"
    assert "pass 'ensuring' ensures no batch norm: 1 batch norms are left" in str(refused.value)


@pytest.mark.parametrize(
    ("step", "spelled"),
    [
        (DropUnitMul(), "drop-unit-mul"),
        (Scale(), "scale"),
        (Scale(by=0.5), "scale{by=0.5}"),
        (Scale(by=2.0, mode="all", seen=[1]), "scale{by=2.0,mode=all}"),
    ],
)
def test_spelled(step: Pass, spelled: str) -> None:
    assert step.spelled() == spelled


def test_progress(program: Program) -> None:
    seen: list[str] = []
    Pipeline([DropUnitMul(), Zero()], progress=lambda step: seen.append(step.name)).run(program)
    assert seen == ["drop-unit-mul", "zero"]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x) * self.scale)


def test_parameters_that_nothing_reads_any_more_are_dropped() -> None:
    """They would be trained without a gradient, which DistributedDataParallel refuses."""
    before = fuseq.capture(Scaled(), torch.rand(1, 3, 8, 8))
    assert "scale" in before.module.state_dict()
    fused = fuseq.fuse(before)
    assert {name.rpartition(".")[2] for name in fused.module.state_dict()} == {"weight", "bias"}
    assert "scale" in before.module.state_dict()
