import math
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq import plugins, rewrite
from fuseq.program import Program

Clear = plugins.load("passes", "clear-dead-channels")
Cleared = sys.modules[Clear.__module__].Cleared


class Net(nn.Module):
    """Input plane 1 is empty; the stem's channel 2 never opens; grouped and linear readers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2)
        self.head = nn.Linear(4, 5)
        assert self.stem.bias is not None
        assert self.grouped.bias is not None
        with torch.no_grad():
            self.stem.bias[2] = -100.0
            self.grouped.bias[:] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.grouped(F.relu(self.stem(x))))
        return self.head(y.mean((2, 3)))


@pytest.fixture
def data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.rand(2, 3, 12, 12, generator=generator) for _ in range(3)]
    for batch in batches:
        batch[:, 1] = 0.0
    return batches


@pytest.fixture
def program(data: list[Tensor]) -> Program:
    torch.manual_seed(0)
    return fuseq.capture(Net().eval(), data[0])


def cleared(program: Program, data: Any) -> Program:
    return rewrite.apply(Clear(calibration=data), program)


def weights(program: Program) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in program.module.named_parameters()}


def test_weights_of_dead_channels_become_zero_and_no_other(
    program: Program, data: list[Tensor]
) -> None:
    before, result = weights(program), cleared(program, data)
    after = weights(result)
    assert list(result.details(Cleared)) == [
        Cleared("stem", (1,), (2,)),
        Cleared("grouped", (2,), ()),
    ]
    assert result.history[-1].rewrites == 2
    dead = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in before.items()}
    dead["stem.weight"][:, 1] = dead["stem.weight"][2] = True
    dead["stem.bias"][2] = True
    dead["grouped.weight"][2:, 0] = True  # the second group reads channels 2 and 3
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name].masked_fill(dead[name], 0.0)), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(program).items())


def test_every_value_on_the_data_stays_what_it_was(program: Program, data: list[Tensor]) -> None:
    result = cleared(program, data)
    with torch.no_grad():
        for batch in data:
            assert torch.equal(program.module(batch), result.module(batch))


def test_a_channel_that_wakes_on_other_data_is_silent(program: Program, data: list[Tensor]) -> None:
    result = cleared(program, data)
    lit = torch.rand(1, 3, 12, 12)
    dark = lit.clone()
    dark[:, 1] = 0.0
    with torch.no_grad():
        assert not torch.equal(program.module(lit), program.module(dark))
        assert torch.equal(result.module(lit), result.module(dark))


def test_a_program_without_dead_channels_stays_as_it_is(program: Program) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 2, 1)).eval()
    data = [torch.rand(2, 3, 8, 8)]
    captured = fuseq.capture(model, data[0])
    result = cleared(captured, data)
    assert result.history[-1].rewrites == 0
    pairs = zip(weights(captured).values(), weights(result).values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_layers_that_share_a_weight_are_told_apart(data: list[Tensor]) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(1.0 - x)

    captured = fuseq.capture(Shared().eval(), data[0])
    result = cleared(captured, data)
    assert [detail.layer for detail in result.details(Cleared)] == ["a"]
    with torch.no_grad():
        assert torch.equal(captured.module(data[0]), result.module(data[0]))


def sqnr(program: Program, data: list[Tensor]) -> float:
    x = torch.cat(data)
    with torch.no_grad():
        expected = program.module(x)
        noise = (program(x) - expected).square().sum()
    return 10 * math.log10(float(expected.square().sum() / noise))


@pytest.mark.parametrize("per_channel", [True, False])
def test_hidden_weights_no_longer_decide_scales(data: list[Tensor], per_channel: bool) -> None:
    """What training leaves behind: a norm of variance zero, and weights that read its channel."""
    torch.manual_seed(0)
    stem, norm, head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 3)
    assert norm.running_var is not None
    with torch.no_grad():
        norm.running_var[3] = 0.0  # times 316
        norm.bias[3] = -500.0  # and never open
        head.weight[:, 3] *= 50
    model = nn.Sequential(stem, norm, nn.ReLU(), head).eval()
    fused = fuseq.fuse(model, data[0])
    plain, better = (
        fuseq.quantize(form, calibration=data, per_channel=per_channel)
        for form in (fused, cleared(fused, data))
    )
    assert sqnr(better, data) > sqnr(plain, data) + 6


def test_refuses_what_it_cannot_use(program: Program, data: list[Tensor]) -> None:
    quantized = fuseq.quantize(program, calibration=data)
    for form, given, code in [
        (program, None, "FQ202"),
        (program, [], "FQ006"),
        (program, [data[0] / 0], "FQ401"),
        (quantized, data, "FQ201"),
    ]:
        with pytest.raises(fuseq.FuseqError) as caught:
            cleared(form, given)
        assert caught.value.code == code
