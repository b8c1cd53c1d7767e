from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fuseq
from fuseq import ops, plugins, rewrite
from fuseq.program import Program
from fuseq.text import to_text
from tests.networks.randomize import randomized
from tests.passes.block import Call

FoldBatchNorm = plugins.load("passes", "fold-bn")


def folded(model: nn.Module, x: Tensor) -> Program:
    return rewrite.apply(FoldBatchNorm(), fuseq.capture(randomized(model), x))


def test_branches_stay_and_a_lone_norm_becomes_a_depthwise_convolution() -> None:
    model = Call(
        lambda m, x: torch.relu(m.norm(m.conv(x)) + m.identity(x)),
        conv=nn.Conv2d(4, 4, 3, padding=1, bias=False),
        norm=nn.BatchNorm2d(4),
        identity=nn.BatchNorm2d(4),
    )
    assert (
        to_text(folded(model, torch.rand(1, 4, 6, 8)))
        == """\
%x = input() : f32[1,4,6,8]
%conv = conv2d(%x) channels=4->4 kernel=3x3 padding=(1, 1) : f32[1,4,6,8]
%identity_1 = conv2d(%x) channels=4->4 kernel=1x1 groups=4 : f32[1,4,6,8]
%add = add(%conv, %identity_1) : f32[1,4,6,8]
%relu = relu(%add) : f32[1,4,6,8]
return %relu
"""
    )


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.BatchNorm2d(6), (2, 4, 9, 8)),
        (nn.ConvTranspose2d(4, 6, 2, 2, groups=2), nn.BatchNorm2d(6), (2, 4, 5, 6)),
        (nn.Linear(4, 6), nn.BatchNorm1d(6), (3, 4)),
    ],
)
def test_the_layer_before_takes_a_norm_over(layer: nn.Module, norm: nn.Module, shape: Any) -> None:
    model, x = nn.Sequential(layer, norm), torch.rand(shape)
    program = folded(model, x)
    assert program.history[-1].rewrites == 1
    assert [n.op for n in program.graph.nodes] == ["placeholder", "call_module", "output"]
    torch.testing.assert_close(program(x), model(x))


def test_a_value_that_others_read_too_keeps_its_layer() -> None:
    model = Call(
        lambda m, x: m.norm(y := m.conv(x)) * y, conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4)
    )
    program = folded(model, torch.rand(1, 3, 6, 8))
    assert ops.count(program, "conv2d") == 2
    assert ops.count(program, "batch_norm") == 0


def test_a_norm_of_tokens_stays() -> None:
    model = Call(lambda m, x: m.norm(m.linear(x)), linear=nn.Linear(5, 6), norm=nn.BatchNorm1d(4))
    assert folded(model, torch.rand(2, 4, 5)).history[-1].rewrites == 0


def test_folded_branches_still_fuse() -> None:
    model = Call(
        lambda m, x: torch.relu(m.norm(m.conv(x)) + m.identity(x)),
        conv=nn.Conv2d(4, 4, 3, padding=1),
        norm=nn.BatchNorm2d(4),
        identity=nn.BatchNorm2d(4),
    )
    program = fuseq.fuse(folded(model, torch.rand(1, 4, 6, 8)))
    assert ops.count(program, "conv2d") == 1
