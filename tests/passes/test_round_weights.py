import dataclasses
import itertools
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fuseq
from fuseq import plugins, rewrite
from fuseq.program import Program
from fuseq.quant.grid import quantize_weight
from tests.passes.layers import Quantized, channel_errors, layers

RoundWeights = plugins.load("passes", "round-weights")
MODULE: Any = sys.modules[RoundWeights.__module__]


def rounded(program: Program, data: Any) -> Program:
    return rewrite.apply(RoundWeights(calibration=data), program)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(layers())
def test_no_channel_of_a_layer_gets_worse(layer: Quantized) -> None:
    result = rounded(layer.program, layer.data)
    before, after = (channel_errors(p, layer.data) for p in (layer.program, result))
    assert (after <= before).all()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(layers())
def test_nothing_but_weights_change_and_by_one_step_at_most(layer: Quantized) -> None:
    # Once more from there: the bound is on the distance from the nearest integer.
    for result in (once := rounded(layer.program, layer.data), rounded(once, layer.data)):
        before, after = layer.program.quantization, result.quantization
        assert before is not None
        assert after is not None
        assert dataclasses.replace(after, integers=before.integers) == before
        (node,) = result.graph.find_nodes(op="call_module")
        name = f"{node.target}.weight"
        weight: Any = result.get(node).weight
        nearest = quantize_weight(weight, after.grids[name]).int()
        assert after.integers[name].dtype == torch.int8
        assert (after.integers[name].int() - nearest).abs().max() <= 1
        assert after.integers[name].abs().max() <= 127
        others = [k for k in before.integers if k != name]
        assert all(torch.equal(before.integers[k], after.integers[k]) for k in others)


@pytest.mark.parametrize("groups", [1, 8])
def test_layers_come_closer_to_the_float_network(groups: int) -> None:
    torch.manual_seed(0)
    smooth = F.avg_pool2d(torch.rand(9, 8, 26, 26), 5, 2)
    program = fuseq.quantize(
        nn.Conv2d(8, 8, 3, groups=groups).eval(), smooth[:1], calibration=smooth.split(3)
    )
    result = rounded(program, smooth.split(3))
    before, after = (float(channel_errors(p, smooth.split(3)).sum()) for p in (program, result))
    table = result.quantization
    assert table is not None
    (node,) = result.graph.find_nodes(op="call_module")
    count = 9 * 8 * 9 * 9
    floor = count * float(table.grids[node.name].scale) ** 2 / 12  # that of the output grid
    assert floor < after < floor + 0.5 * (before - floor)


def test_twice_gives_the_same_table() -> None:
    torch.manual_seed(0)
    data = [torch.rand(4, 6, 8, 8) for _ in range(3)]
    program = fuseq.quantize(nn.Conv2d(6, 5, 3).eval(), data[0], calibration=data)
    first, second = (rounded(program, data).quantization for _ in range(2))
    assert first is not None
    assert second is not None
    assert all(torch.equal(q, second.integers[name]) for name, q in first.integers.items())


@given(st.integers(0, 2**31))
def test_descent_ends_where_no_single_step_helps(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    gram = patches @ patches.mT
    cross = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) @ gram
    start = torch.round(torch.linalg.solve(gram.mT, cross.mT).mT)
    found = MODULE._descended(start, gram, cross, start - 1, start + 1)

    def value(q: Tensor) -> Tensor:
        return ((q @ gram) * q - 2 * q * cross).sum(-1)

    assert (value(found) <= value(start)).all()
    assert (found - start).abs().max() <= 1
    slack = 1e-9 * value(found).abs()
    for k, step in itertools.product(range(4), (-1.0, 1.0)):
        other = found.clone()
        other[..., k] = (other[..., k] + step).clamp(start[..., k] - 1, start[..., k] + 1)
        assert (value(found) <= value(other) + slack).all()


@settings(max_examples=40, deadline=None)
@given(layers())
def test_patches_times_weights_are_outputs(layer: Quantized) -> None:
    (node,) = layer.program.graph.find_nodes(op="call_module")
    module: Any = layer.program.get(node)
    with torch.no_grad():
        y = module(layer.data[0])
        patches, outputs = MODULE._positions(module, layer.data[0], y)
        groups = getattr(module, "groups", 1)
        weight = module.weight.reshape(groups, len(module.weight) // groups, -1)
        computed = (weight @ patches.reshape(groups, -1, patches.shape[-1])).flatten(0, 1)
        if module.bias is not None:
            computed = computed + module.bias[:, None]
    assert outputs.shape == (len(module.weight), y[:, 0].numel())
    assert torch.allclose(computed, outputs, atol=1e-5)


def test_large_maps_are_thinned_out() -> None:
    conv, x = nn.Conv2d(2, 3, 3, padding=1), torch.rand(2, 2, 200, 300)
    with torch.no_grad():
        y = conv(x)
        patches, outputs = MODULE._positions(conv, x, y)
        computed = conv.weight.flatten(1) @ patches
    assert conv.bias is not None
    assert torch.allclose(computed + conv.bias[:, None], outputs, atol=1e-5)
    assert MODULE.POSITIONS / 2 < patches.shape[1] < 2 * MODULE.POSITIONS
    rows = MODULE._positions(nn.Linear(2, 3), torch.rand(50_000, 2), torch.rand(50_000, 3))
    assert all(MODULE.POSITIONS / 2 < part.shape[1] <= MODULE.POSITIONS for part in rows)


def test_inputs_that_are_always_zero_leave_weights_alone() -> None:
    torch.manual_seed(0)
    data = [torch.rand(2, 4, 8, 8) for _ in range(2)]
    for batch in data:
        batch[:, 1] = 0.0
    program = fuseq.quantize(nn.Conv2d(4, 3, 3).eval(), data[0], calibration=data)
    before, after = program.quantization, rounded(program, data).quantization
    assert before is not None
    assert after is not None
    (name,) = [name for name in before.integers if name.endswith("weight")]
    assert torch.equal(before.integers[name][:, 1], after.integers[name][:, 1])
    assert not torch.equal(before.integers[name], after.integers[name])


def test_refuses_what_it_cannot_use() -> None:
    data = [torch.rand(1, 6, 8, 8)]
    floating = fuseq.capture(nn.Conv2d(6, 5, 3).eval(), data[0])
    program = fuseq.quantize(floating, calibration=data)
    for given_program, given_data, code in [
        (floating, data, "FQ201"),
        (program, None, "FQ202"),
        (program, [], "FQ006"),
    ]:
        with pytest.raises(fuseq.FuseqError) as caught:
            rounded(given_program, given_data)
        assert caught.value.code == code
