import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fuseq
from fuseq import ops, plugins, rewrite
from fuseq.program import Program
from fuseq.text import to_text
from tests.networks import gated

ClipGates = plugins.load("passes", "clip-gates")


class Call(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.conv = function, nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Any:
        return self.function(self.conv(x))


def clipped(function: Callable[..., Any], spread: float = 1.0) -> Program:
    torch.manual_seed(0)
    model = Call(function).eval()
    with torch.no_grad():
        model.conv.weight.mul_(spread)
    program = fuseq.capture(model, torch.rand(1, 3, 6, 8))
    return rewrite.apply(ClipGates(), program)


def error_of(program: Program) -> float:
    """What the promise's proof measured."""
    error = program.history[-1].error
    assert error is not None
    return error


def test_a_clamp_stands_in_front_of_what_saturates() -> None:
    assert (
        to_text(clipped(torch.tanh))
        == """\
%x = input() : f32[1,3,6,8]
%conv = conv2d(%x) channels=3->4 kernel=1x1 : f32[1,4,6,8]
%clamp = clamp(%conv) min=-4 max=4 : f32[1,4,6,8]
%tanh = tanh(%clamp) : f32[1,4,6,8]
return %tanh
"""
    )


@pytest.mark.parametrize(
    ("function", "limit", "bound"),
    [
        (torch.tanh, 4.0, 1 - math.tanh(4)),
        (torch.sigmoid, 8.0, 1 / (1 + math.exp(8))),
        (nn.functional.hardsigmoid, 3.0, 1e-15),
    ],
)
def test_no_value_moves_by_more_than_the_bound(function: Any, limit: float, bound: float) -> None:
    x = torch.linspace(-50, 50, 100001, dtype=torch.float64)
    error = (function(x) - function(x.clamp(-limit, limit))).abs().max()
    assert error <= bound * (1 + 1e-9)
    assert f"min=-{limit:g} max={limit:g}" in to_text(clipped(function))
    assert bound <= 6.8e-4


def test_wide_inputs_keep_the_promise() -> None:
    result = clipped(torch.tanh, 100.0)
    assert result.history[-1].rewrites == 1
    assert 0 < error_of(result) <= (1 - math.tanh(4)) * (1 + 1e-9)


@pytest.mark.parametrize(
    "function",
    [
        lambda y: torch.tanh(torch.clamp(y, -1, 1)),
        lambda y: y * torch.sigmoid(y),
        lambda y: torch.relu(y),
    ],
)
def test_clamped_values_and_values_others_read_stay(function: Any) -> None:
    assert clipped(function).history[-1].rewrites == 0


def test_the_grid_of_a_gate_covers_no_more_than_its_steep_part() -> None:
    batches = [100 * torch.randn(1, 3, 64, 64) for _ in range(2)]
    program = fuseq.fuse(gated.small(), batches[0])
    plain = fuseq.quantize(program, calibration=batches)
    after = fuseq.quantize(rewrite.apply(ClipGates(), program), calibration=batches)
    assert plain.quantization is not None
    assert after.quantization is not None
    assert float(plain.quantization.grids["down1_a"].scale) * 255 > 100
    clamp = next(n for n in after.graph.nodes if ops.name_of(after, n) == "clamp")
    assert float(after.quantization.grids[clamp.name].scale) * 255 <= 8.0
