"""The search does work in proportion to the graph, and accounts for everything that it leaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fuseq import capture, ops, rewrite
from fuseq.affine import fuse, reading, search
from fuseq.affine.form import LinForm
from fuseq.affine.prove import Certificate
from fuseq.affine.reading import Given, Reading, after
from fuseq.affine.refusal import CODES, FIXES, Refusal
from fuseq.passes.fuse_affine import FuseAffine
from fuseq.program import Program
from tests.networks.randomize import randomized


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


DEPTH = 400
"""Operations in a row: more than Python's stack holds if each waits for the one before."""


class Block(nn.Module):
    """Layers and the function that calls them."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


def summed(x: Tensor, a: nn.Module, b: nn.Module, n: nn.Module) -> Tensor:
    result: Tensor = a(x) + b(x) + n(x)
    return result


def linear_block() -> nn.Module:
    return Block(summed, nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


def relu_block() -> nn.Module:
    return nn.Sequential(linear_block(), nn.ReLU())


def deep_block() -> nn.Module:
    pair = (nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(3))) for _ in range(2))
    return Block(lambda x, a, b: torch.relu(a(x) + b(x)), *pair)


def padded() -> nn.Module:
    return nn.Conv2d(4, 4, 3, padding=1)


def pointwise() -> nn.Module:
    return nn.Conv2d(4, 4, 1)


def shared_norm() -> nn.Module:
    """A norm that two convolutions read."""
    return Block(
        lambda x, n, a, b: torch.relu(a(y := n(x))) * torch.tanh(b(y)),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 1),
    )


def captured(model: nn.Module) -> Program:
    return capture(model.eval(), torch.randn(1, 4, 8, 8), front_end="fx")


def fused(model: nn.Module) -> Program:
    return rewrite.apply(FuseAffine(), captured(randomized(model)))


@pytest.mark.parametrize(
    "block", [relu_block, linear_block, deep_block, padded, pointwise, shared_norm]
)
def test_work_grows_linearly(
    block: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many blocks again take as many rule applications and proofs again."""
    calls = {"form_of": 0, "residual": 0, "plans": 0}

    def counted(module: object, name: str) -> None:
        function = getattr(module, name)

        def call(*args: object, **options: object) -> object:
            calls[name] += 1
            return function(*args, **options)

        monkeypatch.setattr(module, name, call)

    counted(reading, "form_of")
    counted(fuse, "residual")
    counted(search, "plans")
    totals = []
    for count in (14, 20, 26):
        program = captured(nn.Sequential(*(block() for _ in range(count))))
        calls.update(form_of=0, residual=0, plans=0)
        rewrite.apply(FuseAffine(), program, prove=False)
        totals.append(dict(calls))
    assert totals[1]["form_of"] > totals[0]["form_of"] > 0
    for name in calls:
        first, second, third = (total[name] for total in totals)
        assert third - second == second - first, name


def test_a_sequence_becomes_one_convolution_with_one_certificate() -> None:
    program = captured(nn.Sequential(*(pointwise() for _ in range(40))))
    result = rewrite.apply(FuseAffine(), program, prove=False)
    assert ops.count(result, "conv2d") == 1
    (certificate,) = result.details(Certificate)
    assert [part.name for part in certificate.nodes] == [
        node.name for node in program.graph.nodes if node.op == "call_module"
    ]


def test_a_deep_branch_needs_no_deep_stack() -> None:
    deep = nn.Sequential(*(pointwise() for _ in range(DEPTH)))
    program = captured(Block(lambda x, a, b: a(x) + b(x), deep, pointwise()))
    result = rewrite.apply(FuseAffine(), program, prove=False)
    assert ops.count(result, "conv2d") == 1


def test_composition_gives_the_form_that_reading_gives() -> None:
    layers = nn.Sequential(
        nn.Conv2d(4, 6, 1, groups=2), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, stride=2),
        nn.Conv2d(8, 4, 2, groups=4), nn.BatchNorm2d(4),
    )  # fmt: skip
    program = captured(randomized(layers)).twin(torch.float64)
    root, *nodes = [node for node in program.graph.nodes if node.op != "output"]
    read = Reading(program)
    direct = read.form(nodes, Given(root, None, False), exact=True)
    for middle in range(1, len(nodes)):
        inner = read.form(nodes[:middle], Given(root, None, False), exact=True)
        outer = read.form(nodes[middle:], Given(nodes[middle - 1], None, False), exact=True)
        assert isinstance(direct, LinForm)
        assert isinstance(inner, LinForm)
        assert isinstance(outer, LinForm)
        composed = after(outer, inner)
        assert isinstance(composed, LinForm)
        assert composed.axes == direct.axes
        torch.testing.assert_close(composed.bias, direct.bias, rtol=1e-12, atol=1e-12)
        first = torch.zeros(4, dtype=torch.int64)
        torch.testing.assert_close(
            composed.dense(first, 4), direct.dense(first, 4), rtol=1e-12, atol=1e-12
        )


class Leftovers(nn.Module):
    """Fused blocks between norms and convolutions that stay apart, each for another reason."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = relu_block(), relu_block(), relu_block()
        self.alone, self.before, self.shared = (nn.BatchNorm2d(4) for _ in range(3))
        self.window, self.wide, self.narrow = padded(), nn.Conv2d(4, 1, 1), nn.Conv2d(1, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.alone(self.first(x)))
        x = torch.relu(self.window(self.before(x)))
        y = self.second(x)
        z = self.shared(torch.max_pool2d(y, 3, 1, 1))
        x = self.last(torch.relu(z) * z)
        return torch.relu(self.narrow(self.wide(x)))


def test_certificates_and_refusals_come_in_graph_order() -> None:
    result = fused(Leftovers())
    modules = [node.target for node in result.graph.nodes]
    certificates = [modules.index(c.module) for c in result.details(Certificate)]
    assert certificates == sorted(certificates)
    assert len(certificates) == 3
    names = [node.name for node in result.graph.nodes]
    refusals = [names.index(r.node) for r in result.details(Refusal)]
    assert refusals == sorted(refusals)


def test_each_norm_that_is_left_has_one_refusal() -> None:
    result = fused(Leftovers())
    norms = {n.name for n in result.graph.nodes if ops.name_of(result, n) == "batch_norm"}
    refusals = list(result.details(Refusal))
    assert {"alone", "before", "shared"} == norms
    assert sorted(r.node for r in refusals if r.node in norms) == sorted(norms)
    assert {r.node: r.code for r in refusals} == {
        "alone": "nonlinear",
        "before": "border-bias",
        "shared": "nonlinear",
        "narrow": "cost",
    }
    assert all(r.reason and r.fix for r in refusals)


def test_nothing_is_refused_where_nothing_was_to_gain() -> None:
    """Activations between convolutions, a sum of two activations, a pool: no news."""
    result = fused(
        Block(
            lambda x, a, b: torch.relu(torch.relu(a(x)) + torch.tanh(b(x))).mean((2, 3)),
            padded(),
            padded(),
        )
    )
    assert not list(result.details(Refusal))


def test_a_norm_of_two_inputs_is_explained() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.relu(self.norm(x + y))

    inputs = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    result = rewrite.apply(FuseAffine(), capture(Two().eval(), inputs, front_end="fx"))
    (refusal,) = result.details(Refusal)
    assert (refusal.node, refusal.code) == ("norm", "cost")


def test_every_code_has_a_way_out() -> None:
    assert FIXES.keys() == CODES.keys()
    assert all(FIXES.values())
