import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from fuseq.quant.grid import (
    LARGEST_BIAS,
    LIMITS,
    SMALLEST_SCALE,
    Grid,
    affine_grid,
    bias_grid,
    quantize_weight,
    symmetric_grid,
)

ACTIVATIONS = ("uint8", "int8", "uint16", "int16")
reals = st.floats(-(2.0**100), 2.0**100, width=32)


@given(reals, reals, st.sampled_from(ACTIVATIONS))
def test_every_integer_survives_the_round_trip(low: float, high: float, dtype: str) -> None:
    grid = affine_grid(min(low, high), max(low, high), dtype)
    q = torch.arange(grid.qmin, grid.qmax + 1, dtype=torch.int32)
    assert torch.equal(grid.quantize(grid.dequantize(q)), q)


@given(reals, reals, st.sampled_from(ACTIVATIONS))
def test_zero_is_on_every_grid(low: float, high: float, dtype: str) -> None:
    grid = affine_grid(min(low, high), max(low, high), dtype)
    zero = grid.quantize(torch.zeros(()))
    assert int(zero) == int(grid.zero_point)
    assert float(grid.dequantize(zero)) == 0.0
    assert grid.qmin <= int(grid.zero_point) <= grid.qmax


@given(reals, reals, st.floats(0, 1), st.sampled_from(ACTIVATIONS))
def test_error_inside_the_range_is_at_most_half_a_step(
    low: float, high: float, at: float, dtype: str
) -> None:
    low, high = min(low, high, 0.0), max(low, high, 0.0)
    grid = affine_grid(low, high, dtype)
    real = torch.tensor(low + at * (high - low), dtype=torch.float32)
    error = abs(float(grid.dequantize(grid.quantize(real)).double() - real.double()))
    # The zero point is itself rounded, which moves the ends of the grid by up to half a step; the
    # rest is rounding of the float32 division and product.
    inside = float(grid.dequantize(torch.tensor(grid.qmin))) <= float(real)
    inside &= float(real) <= float(grid.dequantize(torch.tensor(grid.qmax)))
    steps = (0.5 if inside else 1.0) + 2**-23 * (grid.qmax - grid.qmin)
    assert error <= steps * float(grid.scale)


def test_halves_go_to_the_even_integer() -> None:
    grid = affine_grid(0.0, 255.0, "uint8")
    real = torch.tensor([0.5, 1.5, 2.5, -0.5, 254.5, 255.5, 1e9])
    assert grid.quantize(real).tolist() == [0, 2, 2, 0, 254, 255, 255]


@pytest.mark.parametrize("dtype", ACTIVATIONS)
@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 0.0), (3.0, 3.0), (-3.0, -3.0), (1e-45, 1e-42), (-1e-42, 1e-45), (-3e38, 3e38)],
)
def test_degenerate_ranges_give_a_usable_grid(low: float, high: float, dtype: str) -> None:
    grid = affine_grid(low, high, dtype)
    assert 0.0 < float(grid.scale) < math.inf
    reals = grid.dequantize(grid.quantize(torch.tensor([low, 0.0, high])))
    assert torch.isfinite(reals).all()
    step = float(grid.scale) * 1.001
    assert torch.allclose(reals, torch.tensor([low, 0.0, high]), rtol=0, atol=step)


def test_smallest_scales_multiply_to_a_normal_number() -> None:
    x = affine_grid(0.0, 0.0, "uint8")
    weight = symmetric_grid(torch.zeros(2, 3), 0)
    assert float(x.scale) == SMALLEST_SCALE
    assert (bias_grid(x, weight, torch.zeros(2)).scale >= torch.finfo(torch.float32).tiny).all()


def test_per_channel_grid_treats_each_channel_alone() -> None:
    weight = torch.randn(4, 3, 2, 2) * torch.tensor([1e-3, 1.0, 50.0, 0.0]).reshape(4, 1, 1, 1)
    grid = symmetric_grid(weight, 0)
    q = quantize_weight(weight, grid)
    for channel in range(4):
        alone = symmetric_grid(weight[channel : channel + 1], 0)
        assert torch.equal(q[channel : channel + 1], quantize_weight(weight[channel][None], alone))
    assert q.abs().flatten(1).amax(1).tolist() == [127, 127, 127, 0]
    error = (grid.dequantize(q.int()) - weight).abs()
    assert (error <= grid.scale.reshape(-1, 1, 1, 1) * 0.5001).all()


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8))
def test_weights_never_reach_minus_128(values: list[float]) -> None:
    weight = torch.tensor([values], dtype=torch.float32)
    q = quantize_weight(weight, symmetric_grid(weight, 0))
    assert int(q.min()) >= -127
    assert int(q.max()) <= 127


def test_weights_beyond_their_grid_saturate_symmetrically() -> None:
    grid = symmetric_grid(torch.tensor([[1.0]]), 0)  # learned scales leave values outside
    assert quantize_weight(torch.tensor([[-5.0, 5.0]]), grid).tolist() == [[-127, 127]]


def test_transposed_weights_have_channels_on_the_second_axis() -> None:
    weight = torch.randn(3, 5, 2, 2)
    grid = symmetric_grid(weight, 1)
    turned = symmetric_grid(weight.transpose(0, 1), 0)
    assert torch.equal(grid.scale, turned.scale)
    expected = quantize_weight(weight.transpose(0, 1), turned).transpose(0, 1)
    assert torch.equal(quantize_weight(weight, grid), expected)


@pytest.mark.parametrize("weight_size", [0.0, 1e-12, 1.0])
@pytest.mark.parametrize("bias", [0.0, 1e-3, 1e6])
@pytest.mark.parametrize("input_high", [0.0, 1e-9, 1.0])
def test_a_bias_fits_int32_behind_dead_inputs_and_dead_channels(
    weight_size: float, bias: float, input_high: float
) -> None:
    x = affine_grid(0.0, input_high, "uint8")
    weight, biases = torch.full((1, 8), weight_size), torch.tensor([bias])
    grid = symmetric_grid(weight, 0, biases, x.scale)
    exact = biases.double() / bias_grid(x, grid, biases).scale.double()
    assert float(exact.abs()) <= LARGEST_BIAS * (1 + 2**-20)
    # What the widening costs: products lose less than half a step of what the bias needs anyway.
    if bias:
        lost = (grid.dequantize(quantize_weight(weight, grid).int()) - weight).abs().sum()
        assert float(lost) * input_high <= max(bias * 1e-4, float(weight.sum()) * input_high / 127)


def test_widening_for_a_bias_leaves_ordinary_channels_alone() -> None:
    weight, bias = torch.randn(6, 9), torch.randn(6)
    x = affine_grid(-1.0, 3.0, "uint8")
    assert symmetric_grid(weight, 0, bias, x.scale) == symmetric_grid(weight, 0)


def test_equal_grids_are_equal_and_hash_alike() -> None:
    a, b = affine_grid(-1.0, 2.0, "uint8"), affine_grid(-1.0, 2.0, "uint8")
    assert a == b
    assert hash(a) == hash(b)
    assert a != affine_grid(-1.0, 2.0, "int8")
    assert a != Grid(a.scale, a.zero_point + 1, "uint8")
    assert a != Grid(torch.nextafter(a.scale, torch.ones(())), a.zero_point, "uint8")
    assert str(a) == f"uint8 scale={float(a.scale):.6g} zero_point=85"


def test_limits_are_those_of_the_dtypes() -> None:
    for name, (low, high) in LIMITS.items():
        info = torch.iinfo(getattr(torch, name))
        assert (low, high) == (info.min, info.max)


def test_groups_of_a_transposed_convolution_share_the_scales_of_their_channels() -> None:
    """A grouped weight is `[C, O / groups, kh, kw]`, and its bias `[O]`."""
    x, weight = affine_grid(0.0, 1e-9, "uint8"), torch.rand(4, 2, 3, 3) * 1e-9
    biases = torch.tensor([1.0, 2.0, 3e5, -4.0])
    grid = symmetric_grid(weight, 1, biases, x.scale)
    biased = bias_grid(x, grid, biases)
    assert torch.equal(biased.scale, x.scale * grid.scale.repeat(2))
    assert (biases.double() / biased.scale.double()).abs().max() <= LARGEST_BIAS * (1 + 2**-20)
