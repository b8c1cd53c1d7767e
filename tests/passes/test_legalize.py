from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq import ops, plugins, rewrite
from fuseq.program import Program
from fuseq.quant.profile import Profile
from fuseq.text import to_text

Legalize = plugins.load("passes", "legalize")
PROFILE: Profile = plugins.load("backends", "onnx").profile


class Call(nn.Module):
    """A function with a convolution and a linear layer at hand."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function, self.conv, self.linear = function, nn.Conv2d(3, 3, 1), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def captured(function: Callable[..., object]) -> Program:
    torch.manual_seed(0)
    return fuseq.capture(Call(function).eval(), torch.rand(2, 3, 6, 8))


def legalized(program: Program, profile: Profile | None = PROFILE) -> Program:
    """Held to its promise on the float64 twin by `apply`."""
    return rewrite.apply(Legalize(profile=profile), program)


def lines(program: Program) -> list[str]:
    return to_text(program).splitlines()


def test_each_tied_edge_gets_a_requantize() -> None:
    result = legalized(captured(lambda m, x: torch.cat([m.conv(x), x, x], 1)))
    assert lines(result) == [
        "%x = input() : f32[2,3,6,8]",
        "%conv = conv2d(%x) channels=3->3 kernel=1x1 : f32[2,3,6,8]",
        "%requantize = requantize(%conv) : f32[2,3,6,8]",
        "%requantize_1 = requantize(%x) : f32[2,3,6,8]",
        "%concat = concat((%requantize, %requantize_1, %requantize_1)) dim=1 : f32[2,9,6,8]",
        "return %concat",
    ]
    assert result.history[-1].rewrites == 2


def test_two_concats_of_one_value_get_an_edge_each() -> None:
    """Each edge is on its own concat's grid; the value keeps its own for everyone else."""

    def two(m: Call, x: Tensor) -> object:
        y = m.conv(x)
        return torch.cat([y, x], 1), torch.cat([y, torch.relu(y)], 1)

    assert ops.count(legalized(captured(two)), "requantize") == 4


def test_a_decomposed_value_before_a_concat_is_requantized() -> None:
    result = legalized(captured(lambda m, x: torch.cat([F.silu(m.conv(x)), x], 1)))
    assert lines(result)[2:6] == [
        "%sigmoid = sigmoid(%conv) : f32[2,3,6,8]",
        "%mul = mul(%conv, %sigmoid) : f32[2,3,6,8]",
        "%requantize = requantize(%mul) : f32[2,3,6,8]",
        "%requantize_1 = requantize(%x) : f32[2,3,6,8]",
    ]
    assert ops.count(result, "silu") == 0


def test_global_mean_keeps_its_dimensions_until_a_reshape() -> None:
    result = legalized(captured(lambda m, x: m.linear(m.conv(x).mean((2, 3)))))
    assert lines(result)[2:4] == [
        "%mean = mean(%conv) dim=(2, 3) keepdim=True : f32[2,3,1,1]",
        "%reshape = reshape(%mean) shape=(-1, 3) : f32[2,3]",
    ]


def test_a_linear_layer_on_a_map_takes_rows_at_any_size() -> None:
    program = captured(lambda m, x: m.linear(x.permute(0, 2, 3, 1)))
    result = legalized(program)
    assert "reshape(%permute) shape=(-1, 3) : f32[96,3]" in to_text(result)
    other = torch.rand(3, 3, 9, 5)
    assert torch.allclose(result(other), program(other), atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.linear(x.mean((2, 3))),
        lambda m, x: torch.cat([F.silu(x), m.conv(x).mean((2, 3), keepdim=True).expand(x.shape)]),
        lambda m, x: m.linear(F.silu(x).permute(0, 2, 3, 1)),
    ],
)
def test_legalizing_twice_changes_nothing_more(function: Callable[..., object]) -> None:
    once = legalized(captured(function))
    twice = legalized(once)
    assert twice.history[-1].rewrites == 0
    assert to_text(twice) == to_text(once)


def test_without_a_target_or_without_its_rules_nothing_changes() -> None:
    program = captured(lambda m, x: torch.cat([F.silu(m.conv(x)), x], 1))
    assert to_text(legalized(program, None)) == to_text(program)
    tolerant = replace(PROFILE, tied_inputs=frozenset(), decompose=frozenset())
    assert to_text(legalized(program, tolerant)) == to_text(program)
    assert ops.count(program, "requantize") == 0  # the given program stays as it was
