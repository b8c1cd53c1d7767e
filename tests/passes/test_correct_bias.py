import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

import fuseq
from fuseq import plugins, rewrite
from fuseq.program import Program
from fuseq.quant.executor import execute
from fuseq.quant.grid import LARGEST_BIAS
from fuseq.quant.refine import Refined
from tests.passes.layers import Quantized, channel_errors, layers

CorrectBias = plugins.load("passes", "correct-bias")


def corrected(program: Program, data: Any) -> Program:
    return rewrite.apply(CorrectBias(calibration=data), program)


def moved(program: Program, step: int) -> Program:
    """A planted fault: the frozen bias of the only layer is wrong."""
    other = program.clone()
    assert program.quantization is not None
    integers = dict(program.quantization.integers)
    (name,) = [name for name in integers if name.endswith(".bias")]
    integers[name] = integers[name] + step
    other.quantization = dataclasses.replace(program.quantization, integers=integers)
    return other


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(layers())
def test_no_channel_of_a_layer_gets_worse(layer: Quantized) -> None:
    result = corrected(layer.program, layer.data)
    before, after = (channel_errors(p, layer.data) for p in (layer.program, result))
    assert (after <= before).all()
    for record in result.details(Refined):
        power = float((before.sum() / record.noise_before) if record.noise_before else 1.0)
        assert record.noise_after * power == pytest.approx(float(after.sum()), rel=1e-9)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(layers())
def test_nothing_but_biases_change(layer: Quantized) -> None:
    result = corrected(layer.program, layer.data)
    before, after = layer.program.quantization, result.quantization
    assert before is not None
    assert after is not None
    assert dataclasses.replace(after, integers=before.integers) == before
    assert after.integers.keys() == before.integers.keys()
    changed = [k for k, q in after.integers.items() if not torch.equal(q, before.integers[k])]
    assert all(name.endswith(".bias") for name in changed)
    assert all(after.integers[name].dtype == torch.int32 for name in changed)
    channels = sum(int((after.integers[k] != before.integers[k]).sum()) for k in changed)
    assert result.history[-1].rewrites == channels


@pytest.fixture
def layer() -> Quantized:
    torch.manual_seed(0)
    data = [torch.rand(4, 6, 8, 8) for _ in range(3)]
    program = fuseq.quantize(nn.Conv2d(6, 5, 3).eval(), data[0], calibration=data)
    return Quantized(program, data)


def test_channels_have_the_mean_of_the_float_network(layer: Quantized) -> None:
    result = corrected(layer.program, layer.data)
    (node,) = result.graph.find_nodes(op="call_module")
    table = result.quantization
    assert table is not None
    grid, step = table.grids[node.name], float(table.grids[node.name].scale)

    def mean_errors(program: Program) -> Tensor:
        actual = [grid.dequantize(execute(program, (x,)).integers[node.name]) for x in layer.data]
        with torch.no_grad():
            errors = torch.cat(actual) - program.module(torch.cat(layer.data))
        return errors.mean((0, 2, 3)).abs()

    assert float(mean_errors(layer.program).max()) > 0.2 * step
    # What is left is the mean of 432 roundings to the output grid, of 0.29 steps each.
    assert float(mean_errors(result).max()) < 6 * 0.29 * step / 432**0.5


@pytest.mark.parametrize("step", [-3000, 3000])
def test_a_planted_shift_is_taken_back(layer: Quantized, step: int) -> None:
    right, wrong = corrected(layer.program, layer.data), moved(layer.program, step)
    mended = corrected(wrong, layer.data)
    errors = [float(channel_errors(p, layer.data).sum()) for p in (right, mended, wrong)]
    assert errors[0] <= errors[1] < 1.05 * errors[0] < 0.05 * errors[2]


def test_a_bias_stays_within_its_limit(layer: Quantized) -> None:
    far = corrected(moved(layer.program, -(2**30) - 2**29), layer.data).quantization
    assert far is not None
    assert all(q.abs().max() <= LARGEST_BIAS for k, q in far.integers.items() if "bias" in k)


def test_refuses_what_it_cannot_use(layer: Quantized) -> None:
    floating = fuseq.capture(nn.Conv2d(6, 5, 3).eval(), layer.data[0])
    for program, data, code in [
        (floating, layer.data, "FQ201"),
        (layer.program, None, "FQ202"),
        (layer.program, [], "FQ006"),
    ]:
        with pytest.raises(fuseq.FuseqError) as caught:
            corrected(program, data)
        assert caught.value.code == code
