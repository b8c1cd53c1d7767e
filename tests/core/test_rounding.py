"""The derived float32 bound holds always, follows conditioning, and is passed by real faults."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fuseq
from fuseq import Program, verify
from fuseq.rounding import FACTOR, MISSED, RUNS, float32_bound, float32_bounds
from tests.networks.randomize import randomized
from tests.test_networks import NETWORKS

LOOSEST = 1000.0
"""The bound covers kernels that add in any order and the tails of a Gaussian, not more."""


class Lambda(nn.Module):
    def __init__(self, forward: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = forward, nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, *self.layers)


@cache
def fused(name: str) -> tuple[Program, Program, Tensor]:
    model = importlib.import_module(f"tests.networks.{name}").small()
    x = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    before = fuseq.capture(model, x)
    return before, fuseq.fuse(before, prove=False), x


def error_from_float64(program: Program, inputs: tuple[Tensor, ...]) -> list[float]:
    wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    truth = verify.outputs(program.twin(torch.float64), wide)
    pairs = zip(verify.outputs(program, inputs), truth, strict=True)
    return [float((a - b).abs().max()) for a, b in pairs]


def error_between(before: Program, after: Program, inputs: tuple[Tensor, ...]) -> list[float]:
    pairs = zip(verify.outputs(before, inputs), verify.outputs(after, inputs), strict=True)
    return [float((a - b).abs().max()) for a, b in pairs]


def test_the_factor_keeps_its_probability_for_one_number() -> None:
    """The S-inequality leaves the tail of a single Gaussian; its probability by simulation."""
    draws = torch.randn(RUNS + 1, 2_000_000, generator=torch.Generator().manual_seed(0)).abs()
    missed = (draws[0] > FACTOR * draws[1:].amax(0)).double().mean()
    assert 0.3 * MISSED < missed < 1.1 * MISSED


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_stay_within_the_bound_and_not_far_below(name: str) -> None:
    before, after, x = fused(name)
    for error, bound in (
        (error_between(before, after, (x,)), float32_bound((x,), before, after)),
        (error_from_float64(after, (x,)), float32_bound((x,), after)),
        (error_from_float64(before, (x,)), float32_bound((x,), before)),
    ):
        assert all(e <= b for e, b in zip(error, bound, strict=True))
        assert all(b <= LOOSEST * e for e, b in zip(error, bound, strict=True) if e)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_layer_that_is_off_by_a_thousandth_exceeds_the_bound(name: str) -> None:
    before, after, x = fused(name)
    bound = float32_bound((x,), before, after)
    wrong = after.clone()
    layers = [m for m in wrong.module.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for parameter in layers[len(layers) // 2].parameters():
            parameter.mul_(1.001)
    error = error_between(before, wrong, (x,))
    assert any(e > b for e, b in zip(error, bound, strict=True))
    widened = float32_bound((x,), before, wrong)
    assert all(b <= 2 * a for a, b in zip(bound, widened, strict=True)), "a fault hides itself"


def test_a_forgotten_epsilon_exceeds_the_bound() -> None:
    block = [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    model = randomized(nn.Sequential(*block, nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)))
    variances = [m.running_var for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for variance in variances:
        assert variance is not None
        variance.mul_(0.05)
    x = torch.randn(1, 8, 32, 32)
    before = fuseq.capture(model, x)
    wrong = before.clone()
    for module in wrong.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    after = fuseq.fuse(wrong, prove=False)
    (error,), (bound,) = error_between(before, after, (x,)), float32_bound((x,), before, after)
    assert error > bound


def test_cancelling_branches_widen_the_bound_as_they_widen_the_error() -> None:
    def difference(size: float) -> tuple[float, float]:
        first = randomized(nn.Conv2d(4, 4, 3, padding=1))
        second = nn.Conv2d(4, 4, 3, padding=1)
        with torch.no_grad():
            for a, b in zip(first.parameters(), second.parameters(), strict=True):
                b.copy_(size * a)
                b.add_(1e-3 * torch.randn(b.shape, generator=torch.Generator().manual_seed(3)))
        model = Lambda(lambda x, a, b: torch.relu(size * a(x) - b(x)), first, second)
        x = torch.randn(1, 4, 24, 24, generator=torch.Generator().manual_seed(0))
        program = fuseq.capture(model, x)
        (error,), (bound,) = error_from_float64(program, (x,)), float32_bound((x,), program)
        assert error <= bound <= LOOSEST * error
        return error, bound

    small, large = difference(1.0), difference(1e4)
    assert large[0] > 1e3 * small[0]
    assert large[1] > 1e3 * small[1]


OPERATIONS: dict[str, nn.Module] = {
    "conv_transpose": nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2),
    "linear": Lambda(lambda x, f: f(x.flatten(2)), nn.Linear(120, 7)),
    "matmul": Lambda(lambda x: x @ (x / 3).mT),
    "attention": Lambda(lambda x: torch.softmax(x @ x.mT, -1) @ x),
    "mask": Lambda(lambda x: torch.softmax(x.masked_fill(x > 1, float("-inf")), -1)),
    "statistics": nn.Sequential(nn.InstanceNorm2d(6, affine=True), nn.GroupNorm(2, 6)),
    "layer norm": nn.LayerNorm(10),
    "pools": nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.AdaptiveAvgPool2d((4, 3))),
    "max pool": nn.MaxPool2d(2),
    "global": Lambda(lambda x: x.mean((2, 3)) - x.amax((2, 3))),
    "activations": nn.Sequential(nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.PReLU(6), nn.Tanh()),
    "gelu's tail": Lambda(lambda x: F.gelu(-3 - x.abs())),
    "foreign": Lambda(lambda x: torch.cumsum(F.softplus(x), 2).logsumexp(1)),
    "resize": nn.Upsample(scale_factor=2.0, mode="bilinear"),
    "moves": Lambda(lambda x: F.pixel_shuffle(torch.cat([x, x[:, :2]], 1).flip(3), 2)),
    "several": Lambda(lambda x: (x * 3, [x.relu(), (x / 7).chunk(2, 1)[1]])),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("fill", ["random", "flat", "zero"])
def test_operations_stay_within_the_bound(name: str, fill: str) -> None:
    x = torch.randn(2, 6, 12, 10, generator=torch.Generator().manual_seed(4))
    x = {"random": x, "flat": torch.full_like(x, 0.1), "zero": torch.zeros_like(x)}[fill]
    program = fuseq.capture(randomized(OPERATIONS[name]), x)
    error, bound = error_from_float64(program, (x,)), float32_bound((x,), program)
    assert all(e <= b for e, b in zip(error, bound, strict=True))
    if name in ("moves", "max pool"):
        assert error == bound == [0.0]


def test_the_bound_is_reproducible_and_reported() -> None:
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid()))
    x = torch.randn(1, 3, 9, 9)
    first, second = (fuseq.fuse(model, x).report for _ in range(2))
    assert first is not None
    assert second is not None
    assert first["float32_bound"] == second["float32_bound"] >= first["max_abs_error_f32"] > 0


def test_two_programs_are_compared_within_the_derived_bound() -> None:
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)))
    x = torch.randn(1, 3, 9, 9)
    before = fuseq.capture(model, x)
    after = fuseq.fuse(before)
    assert fuseq.check(before, after).passed
    with torch.no_grad():
        next(after.module.parameters()).mul_(1 + 1e-4)
    (check,) = fuseq.check(before, after).checks
    assert not check.passed
    assert check.gate["max_rel"] < 2e-5 < check.metrics["max_rel"]


@pytest.mark.parametrize("name", ["ecbsr", "gated", "mobilenet_v3"])
def test_the_bound_of_each_value_holds(name: str) -> None:
    _, program, x = fused(name)
    bounds = float32_bounds((x,), program)
    narrow, wide = (
        fx.Interpreter(form.module, garbage_collect_values=False)
        for form in (program, program.in_dtype(torch.float64))
    )
    with torch.no_grad():
        narrow.run(x)
        wide.run(x.double())
    exact = {node.name: value for node, value in wide.env.items()}
    values = {
        n.name: v for n, v in narrow.env.items() if isinstance(v, Tensor) and n.name in bounds
    }
    assert len(values) > 5
    for node, value in values.items():
        error = float((value.double() - exact[node]).abs().max())
        assert error <= bounds[node], node
        assert bounds[node] <= LOOSEST * error or error == 0 or value.numel() < 100, node
    [output] = program.outputs()
    assert bounds[output.name] == pytest.approx(float32_bound((x,), program)[0], rel=1)
