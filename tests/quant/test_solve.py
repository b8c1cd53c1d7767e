from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq import plugins, rewrite
from fuseq.program import Program
from fuseq.quant.grid import affine_grid
from fuseq.quant.observer import MinMaxObserver
from fuseq.quant.profile import Profile
from fuseq.quant.solve import solve
from fuseq.quant.structure import find_structure
from fuseq.quant.table import QuantizationTable

PROFILE: Profile = plugins.load("backends", "onnx").profile


class Call(nn.Module):
    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function, self.conv = function, nn.Conv2d(3, 4, 1)
        self.scales = nn.Parameter(torch.tensor([0.5, -2.0, 3.0, 0.0]).reshape(1, 4, 1, 1))

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def program_of(function: Callable[..., object]) -> Program:
    torch.manual_seed(0)
    program = fuseq.capture(Call(function).eval(), torch.rand(1, 3, 6, 6))
    return rewrite.apply(plugins.load("passes", "legalize")(profile=PROFILE), program)


def solved(
    function: Callable[..., object],
    ranges: dict[str, tuple[float, float]] | None = None,
    *,
    profile: Profile = PROFILE,
    keep: frozenset[str] = frozenset(),
    wide: frozenset[str] = frozenset(),
) -> QuantizationTable:
    """Table of a program whose values took the given ranges, [-1, 1] where none is given."""
    program = program_of(function)
    structure = find_structure(program, profile, keep, wide)
    observers = {}
    for name in structure.group.values():
        observers[name] = MinMaxObserver()
        observers[name].update(torch.tensor((ranges or {}).get(name, (-1.0, 1.0))))
    return solve(program, profile, structure, observers)


LIMITS = [
    (0.0, 6.0),
    (0.0, 0.1),
    (-1.0, 1.0),
    (-0.3, 2.7),
    (-2.0, 0.0),
    (-1e-3, 7.0),
    (0.0, 1 / 3),
    (-5.0, 1e-6),
]


@pytest.mark.parametrize(("low", "high"), LIMITS)
def test_a_grid_lies_inside_its_clamp_and_is_the_widest_that_does(low: float, high: float) -> None:
    """In float32 as the runtime computes it: one rounding too far, and it keeps the clamp."""
    seen = (low, high)  # calibration reached both ends
    table = solved(lambda m, x: m.conv(x).clamp(low, high), {"clamp": seen})
    grid = table.grids["clamp"]
    ends = (grid.qmin - grid.zero_point, grid.qmax - grid.zero_point)
    bottom, top = (float(grid.scale * end) for end in ends)
    assert low <= bottom
    assert top <= high
    wider = torch.nextafter(grid.scale, torch.ones(()))
    step = float(affine_grid(low, high, "uint8").scale)
    fits_exactly = float(grid.scale) == step
    assert fits_exactly or float(wider * ends[0]) < low or float(wider * ends[1]) > high
    # Both ends are still reached to within a step (-0.3 cannot be, at a zero point of 26, without
    # giving up five steps at 2.7).
    assert bottom - low <= step
    assert high - top <= step


@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (-2.0, -0.5)])
def test_a_clamp_that_cuts_zero_off_leaves_the_grid_as_it_is(low: float, high: float) -> None:
    table = solved(lambda m, x: m.conv(x).clamp(low, high), {"clamp": (low, high)})
    assert table.grids["clamp"] == affine_grid(low, high, "uint8")


def test_values_of_a_group_share_one_grid() -> None:
    table = solved(
        lambda m, x: F.pixel_shuffle(torch.cat([m.conv(x), torch.sigmoid(m.conv(x))], 1), 2)
    )
    grids = [table.grids[name] for name in ("requantize", "requantize_1", "concat")]
    assert all(grid is table.grids["pixel_shuffle"] for grid in grids)
    assert table.grids["conv"] is not grids[0]


def test_constant_operands_are_frozen_on_grids_of_their_own() -> None:
    table = solved(lambda m, x: m.conv(x) * m.scales + 0.75)
    (constant,) = [k for k in table.integers if "scales" in k]
    frozen = table.grids[constant].dequantize(table.integers[constant])
    expected = torch.tensor([0.5, -2.0, 3.0, 0.0]).reshape(1, 4, 1, 1)
    assert (frozen - expected).abs().max() <= table.grids[constant].scale * 0.5001
    number = table.grids["add.operand"].dequantize(table.integers["add.operand"])
    assert float(number) == pytest.approx(0.75, rel=1e-6)  # the end of its grid


@pytest.mark.parametrize("wide", ["conv", "add", "x"])
def test_constant_operands_are_as_fine_as_the_values_of_their_op(wide: str) -> None:
    table = solved(lambda m, x: torch.relu(m.conv(x) + 0.75), wide=frozenset({wide}))
    assert table.grids["conv" if wide == "conv" else "relu" if wide == "add" else "x"].dtype == (
        "uint16"
    )
    assert table.grids["add.operand"].dtype == ("uint8" if wide == "x" else "uint16")


def test_sixteen_bits_give_one_value_257_times_finer_steps() -> None:
    def function(m: Call, x: Tensor) -> object:
        return torch.sigmoid(m.conv(x))

    narrow, mixed = solved(function), solved(function, wide=frozenset({"conv"}))
    ratio = narrow.grids["conv"].scale / mixed.grids["conv"].scale
    assert float(ratio) == pytest.approx(257)
    assert mixed.grids["conv"].dtype == "uint16"
    assert {n: g for n, g in mixed.grids.items() if n != "conv"} == {
        n: g for n, g in narrow.grids.items() if n != "conv"
    }
    everywhere = solved(function, profile=replace(PROFILE, activation="uint16"))
    dtypes = {everywhere.grids[name].dtype for name in ("x", "conv", "sigmoid")}
    assert dtypes == {"uint16"}
    assert everywhere.grids["conv.weight"] == narrow.grids["conv.weight"]


@pytest.mark.parametrize(("low", "high"), LIMITS)
def test_a_grid_of_sixteen_bits_lies_inside_its_clamp(low: float, high: float) -> None:
    table = solved(
        lambda m, x: m.conv(x).clamp(low, high), {"clamp": (low, high)}, wide=frozenset({"clamp"})
    )
    grid = table.grids["clamp"]
    bottom, top = (float(grid.scale * (end - grid.zero_point)) for end in (grid.qmin, grid.qmax))
    step = float(affine_grid(low, high, "uint16").scale)
    assert low <= bottom <= low + step
    assert high - step <= top <= high


def test_weights_and_biases_are_frozen_where_integers_are_computed() -> None:
    table = solved(lambda m, x: m.conv(x))
    weight, bias = table.grids["conv.weight"], table.grids["conv.bias"]
    assert torch.equal(bias.scale, table.grids["x"].scale * weight.scale)
    assert table.integers["conv.weight"].dtype == torch.int8
    assert table.integers["conv.bias"].dtype == torch.int32
    program = program_of(lambda m, x: m.conv(x))
    module = program.module.get_submodule("conv")
    assert isinstance(module, nn.Conv2d)
    assert module.bias is not None
    error = bias.dequantize(table.integers["conv.bias"]) - module.bias
    assert (error.abs() <= bias.scale * 0.51).all()


def test_kept_layers_keep_their_weights() -> None:
    table = solved(lambda m, x: torch.sigmoid(m.conv(x)), keep=frozenset({"conv"}))
    assert not any("weight" in key or "bias" in key for key in (*table.integers, *table.grids))


def test_per_tensor_targets_get_one_scale_for_all_channels() -> None:
    each = solved(lambda m, x: m.conv(x)).grids["conv.weight"]
    one = solved(lambda m, x: m.conv(x), profile=replace(PROFILE, per_channel=False))
    assert torch.equal(one.grids["conv.weight"].scale, each.scale.amax().expand(4))
    assert int(one.integers["conv.weight"].abs().max()) == 127


def test_a_fixed_grid_wins_over_what_was_seen() -> None:
    profile = replace(PROFILE, fixed={"sigmoid": {"uint8": (1 / 256, 0)}})
    table = solved(lambda m, x: torch.sigmoid(m.conv(x)), {"sigmoid": (0.4, 0.6)}, profile=profile)
    assert float(table.grids["sigmoid"].scale) == 1 / 256


@pytest.mark.parametrize("seen", [(0.0, 0.0), (-1e-9, 1e-9)])
def test_sums_and_means_take_no_steps_finer_than_their_terms_allow(
    seen: tuple[float, float],
) -> None:
    """A kernel multiplies by the ratio of scales; ONNX Runtime refuses one of 256 or more."""
    table = solved(
        lambda m, x: (m.conv(x).mean((2, 3), keepdim=True), x + x, x - x[:, :1]),
        {"mean": seen, "add": seen, "sub": seen},
    )
    absorbed = solved(lambda m, x: torch.relu(x + x), {"relu": seen})
    assert absorbed.grids["relu"].scale >= absorbed.grids["x"].scale / 128
    for name, term in (("mean", "conv"), ("add", "x"), ("sub", "x")):
        assert table.grids[name].scale >= table.grids[term].scale / 128
    ordinary = solved(lambda m, x: x + x, {"add": (-2.0, 1.0)})
    assert ordinary.grids["add"] == affine_grid(-2.0, 1.0, "uint8")


@pytest.mark.parametrize("seen", [(0.0, 0.0), (0.0, 1e-7), (-1e-6, 1e-9)])
def test_products_take_no_steps_finer_than_those_of_their_integers(
    seen: tuple[float, float],
) -> None:
    """XNNPACK loads no convolution that multiplies by 256, and LiteRT answers wrongly from there.

    From 2**31 steps on ONNX Runtime's QLinearMul gives the other end of the grid.
    """
    table = solved(
        lambda m, x: (m.conv(x) * x[:, :1], x * 2.5, x * 1e-9),
        {"conv": seen, "mul": seen, "mul_1": seen, "mul_2": seen},
    )
    largest = {"mul": "conv", "mul_1": "mul_1.operand", "mul_2": "mul_2.operand"}
    for name, factor in {"conv": "conv.weight", **largest}.items():
        product = table.grids["x"].scale * table.grids[factor].scale
        assert float((product / table.grids[name].scale).max()) < 256
    ordinary = solved(lambda m, x: x * x, {"mul": (-1.0, 1.0)})
    assert ordinary.grids["mul"] == affine_grid(-1.0, 1.0, "uint8")
    absorbed = solved(lambda m, x: torch.relu(m.conv(x)), {"relu": (0.0, 0.0)}).grids
    multiplier = absorbed["x"].scale * absorbed["conv.weight"].scale / absorbed["relu"].scale
    assert float(multiplier.max()) < 256


def test_sums_of_layers_stay_below_32_bits_of_steps() -> None:
    """From `-2**31` on, XNNPACK's convolution gives the upper end of the grid."""
    tiny = {"x": (0.0, 1e-6), "relu": (0.0, 0.0)}
    table = solved(lambda m, x: torch.relu(m.conv(x)), tiny)
    bias = table.grids["conv.bias"].dequantize(table.integers["conv.bias"]).abs().max()
    assert float(bias / table.grids["relu"].scale) < 2**31
    assert float(bias / table.grids["relu"].scale) > 2**20


@pytest.mark.parametrize("activation", [F.relu, F.hardswish, F.leaky_relu])
def test_activations_that_are_always_zero_keep_their_integers_below_32_bits(
    activation: Callable[[Tensor], Tensor],
) -> None:
    table = solved(lambda m, x: activation(x), {activation.__name__: (0.0, 0.0)})
    ratio = table.grids["x"].scale / table.grids[activation.__name__].scale
    assert 1 < float(ratio) <= (64 if activation is F.hardswish else 2**20)
