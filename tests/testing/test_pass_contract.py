"""The contract passes for passes that are right, and each of its tests catches one that is not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import fuseq
from fuseq import ops, plugins
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.testing import PassContract
from fuseq.testing.networks import small_networks


class TestFuseAffine(PassContract):
    pass_ = plugins.load("passes", "fuse-affine")()


class TestFoldBatchNorm(PassContract):
    pass_ = plugins.load("passes", "fold-bn")()


class TestLegalize(PassContract):
    before = "fuse-affine"
    pass_ = plugins.load("passes", "legalize")(profile=plugins.load("backends", "onnx").profile)


class TestClipGates(PassContract):
    pass_ = plugins.load("passes", "clip-gates")()


@dataclass(frozen=True)
class Scale(fuseq.Pass):
    """Doubles what each convolution gives and halves it again; the options spoil that."""

    name: ClassVar[str] = "scale"
    promise: ClassVar[fuseq.Promise] = fuseq.SameFunction()
    fault: str = ""
    log: Any = field(default=None, repr=False)

    def run(self, program: Program) -> int:
        found = [n for n in program.graph.nodes if ops.name_of(program, n) == "conv2d"]
        for node in found:
            self._rewrite(program, node)
        if self.fault == "refuses":
            raise FuseqError("FQ401", "this pass refuses")
        if self.fault == "raises":
            raise ZeroDivisionError("this pass fails")
        if self.fault == "changes the model":
            next(iter(program.origin.module.parameters())).data.mul_(2)
        return 0 if self.fault == "finds nothing" else len(found)

    def _rewrite(self, program: Program, node: torch.fx.Node) -> None:
        layer = program.get(node)
        assert isinstance(layer, nn.Conv2d)
        if self.fault == "finds nothing":
            return
        users = list(node.users)
        with program.graph.inserting_after(node):
            half = program.graph.call_function(torch.mul, (node, 0.5))
        half.meta = {} if self.fault == "forgets sources" else dict(node.meta)
        for user in users:
            user.replace_input_with(node, half)
        factor = 2.0 + (0.1 if self.fault == "computes wrongly" else 0.0)
        if self.fault == "is random":
            factor += torch.randn(()).item() * 1e-6
        with torch.no_grad():
            layer.weight.mul_(factor)
            if layer.bias is not None:
                layer.bias.mul_(factor)


def contract(step: fuseq.Pass, **attributes: Any) -> PassContract:
    """A contract on two networks."""

    class Here(PassContract):
        pass_ = step

        def programs(self):
            chosen = small_networks()
            names = ("Plain", "Gated")
            return {name: fuseq.capture(*chosen[name]) for name in names}

    for name, value in attributes.items():
        setattr(Here, name, value)
    return Here()


def failures(made: PassContract) -> dict[str, str]:
    """Names of the tests that fail, with what they say."""
    found = {}
    for name in (name for name in dir(made) if name.startswith("test_")):
        try:
            getattr(made, name)()
        except (AssertionError, FuseqError) as error:
            found[name.removeprefix("test_")] = str(error)
    return found


def test_a_right_pass_fails_nothing():
    assert failures(contract(Scale())) == {}


@pytest.mark.parametrize(
    ("fault", "test", "words"),
    [
        ("computes wrongly", "it_keeps_its_promise_or_refuses", "breaks its numeric promise"),
        ("raises", "it_keeps_its_promise_or_refuses", "something else than a FuseqError"),
        ("refuses", "it_keeps_its_promise_or_refuses", "not named in `refuses`"),
        ("finds nothing", "it_keeps_its_promise_or_refuses", "it rewrites nothing"),
        ("changes the model", "it_leaves_what_it_was_given", "model's first.weight"),
        ("is random", "it_is_deterministic", "differs in weight"),
        ("forgets sources", "new_nodes_know_where_they_come_from", "no source line on mul"),
    ],
)
def test_each_fault_is_caught(fault, test, words):
    assert words in failures(contract(Scale(fault)))[test]


def test_refusals_that_are_announced_are_right():
    announced = contract(Scale("refuses"), refuses=frozenset({"Plain", "Gated"}), rewrites=False)
    assert failures(announced) == {}
    assert failures(contract(Scale("finds nothing"), rewrites=False)) == {}
    more = contract(Scale(), refuses=frozenset({"Gated"}))
    assert "not refused: Gated" in failures(more)["it_keeps_its_promise_or_refuses"]


@dataclass(frozen=True)
class Undescribed(Scale):
    rates: dict[str, float] = field(default_factory=dict)


class Thawed(fuseq.Pass):
    """Has no options, and is no dataclass."""

    name = "thawed"
    promise = fuseq.NewFunction("a test")

    def run(self, program: Program) -> int:
        return 0


def test_a_pass_is_data_with_a_purpose_and_a_spelling():
    described = "it_is_a_frozen_dataclass_with_a_name_a_purpose_and_a_promise"
    found = failures(contract(Undescribed(rates={"a": 1.0})))
    assert "has no docstring" in found[described]
    assert "cannot be read back" in found["its_spelling_gives_it_back"]
    assert found.keys() == {described, "its_spelling_gives_it_back"}
    assert "no @dataclass(frozen=True)" in failures(contract(Thawed()))[described]
