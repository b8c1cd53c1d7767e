import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fuseq
from benchmarks.equalize import CASES, Case, gate_sqnr
from fuseq import ops, plugins, rewrite
from fuseq.affine.refusal import CODES, Refusal
from fuseq.errors import FuseqError
from fuseq.pass_spec import parse_passes
from fuseq.program import Program
from tests.networks import gated
from tests.passes.block import Call

Equalize = plugins.load("passes", "equalize")
Equalized = sys.modules[Equalize.__module__].Equalized
PROFILE = plugins.load("backends", "onnx").profile
DATA = [2 * torch.rand(2, 4, 8, 8, generator=torch.Generator().manual_seed(i)) - 1 for i in (1, 2)]


def conv(inputs: int = 4, outputs: int = 4, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": kernel // 2, **options})


def captured(function: Callable[..., Any], **layers: nn.Module) -> Program:
    """The channels of layer `a` have ranges that are far apart."""
    torch.manual_seed(0)
    model = Call(function, **{"a": conv(), "b": conv(), "c": conv(), **layers}).eval()
    a: Any = model.a
    with torch.no_grad():
        rows = torch.logspace(-1, 1, len(a.weight))
        a.weight.mul_(rows.reshape(-1, *[1] * (a.weight.dim() - 1)))
        a.bias.mul_(rows)
    return fuseq.capture(model, torch.rand(2, 4, 8, 8))


def equalized(program: Program) -> Program:
    """Held to its promise on the float64 twin by `apply`."""
    return rewrite.apply(Equalize(calibration=DATA), program)


def error_of(program: Program) -> float:
    """What the promise's proof measured."""
    error = program.history[-1].error
    assert error is not None
    return error


def ranges(program: Program, name: str) -> Tensor:
    """Largest magnitude of each channel of a node over the calibration data."""

    class Watcher(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            result = super().run_node(node)
            if node.name == name:
                seen.append(result.abs().amax((0, 2, 3)))
            return result

    seen: list[Tensor] = []
    with torch.no_grad():
        for batch in DATA:
            Watcher(program.module).run(batch)
    return torch.stack(seen).amax(0)


def scaled(program: Program) -> dict[str, tuple[str, ...]]:
    return {detail.layer: detail.readers for detail in program.details(Equalized)}


def test_two_thirds_of_the_spread_move_into_the_next_layer() -> None:
    program = captured(lambda m, x: m.b(torch.relu(m.a(x))))
    result = equalized(program)
    before, after = ranges(program, "relu"), ranges(result, "relu")
    power = after / before ** (1 / 3)
    torch.testing.assert_close(power, power[:1].expand_as(power))
    factors = after / before
    torch.testing.assert_close(factors.log().mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    (detail,) = result.details(Equalized)
    assert (detail.layer, detail.channels, detail.readers) == ("a", (0, 4), ("b",))
    assert detail.spread_before == pytest.approx(float(before.max() / before.log().mean().exp()))
    assert detail.spread_after == pytest.approx(detail.spread_before ** (1 / 3))
    assert error_of(result) < 1e-14


PATHS: list[tuple[Any, dict[str, Any], dict[str, tuple[str, ...]]]] = [
    (lambda m, x: m.b(F.leaky_relu(m.a(x), 0.3)), {}, {"a": ("b",)}),
    (lambda m, x: m.b(m.act(m.a(x))), {"act": nn.PReLU(4)}, {"a": ("b",)}),
    (lambda m, x: m.b(F.max_pool2d(torch.relu(m.a(x)), 2)), {}, {"a": ("b",)}),
    (lambda m, x: m.b(F.avg_pool2d(m.a(x), 2)), {}, {"a": ("b",)}),
    (lambda m, x: m.b(F.pad(m.a(x), (1, 2, 0, 1))), {}, {"a": ("b",)}),
    (lambda m, x: m.b(F.interpolate(m.a(x), scale_factor=2.0)), {}, {"a": ("b",)}),
    (lambda m, x: m.b(m.a(x)[:, :, 1:]), {}, {"a": ("b",)}),
    (lambda m, x: (m.b(torch.relu(m.a(x))), m.c(F.relu(m.a(x)))), {}, {"a": ("b",), "a_1": ("c",)}),
    (lambda m, x: (lambda y: (m.b(y), m.c(y)))(torch.relu(m.a(x))), {}, {"a": ("b", "c")}),
    (lambda m, x: m.b(torch.relu(m.a(x))), {"b": conv(groups=2)}, {"a": ("b",)}),
    (
        lambda m, x: m.c(torch.relu(m.b(torch.relu(m.a(x))))),
        {"b": conv(groups=4)},
        {"a": ("b",), "b": ("c",)},
    ),
    (
        lambda m, x: m.b(torch.relu(m.a(x))),
        {"b": nn.ConvTranspose2d(4, 6, 3, 2, groups=2)},
        {"a": ("b",)},
    ),
    (
        lambda m, x: m.q(torch.relu(m.p(torch.relu(m.a(x)).mean((2, 3))))),
        {"p": nn.Linear(4, 8), "q": nn.Linear(8, 3)},
        {"a": ("p",), "p": ("q",)},
    ),
    (
        lambda m, x: m.p(F.adaptive_avg_pool2d(m.a(x), 1).flatten(1)),
        {"p": nn.Linear(4, 8)},
        {"a": ("p",)},
    ),
    (
        lambda m, x: m.c(torch.cat((x, torch.relu(m.a(x)), m.b(x)), 1)),
        {"c": conv(12)},
        {"a": ("c",), "b": ("c",)},
    ),
    (
        lambda m, x: (lambda y: (m.b(y[:, :2]), m.c(y[:, 3:])))(m.a(x)),
        {"b": conv(2), "c": conv(1)},
        {"a": ("c",)},
    ),
    (lambda m, x: m.c(m.a(x) * m.b(x)), {}, {"a": ("c",), "b": ("c",)}),
    (lambda m, x: m.c(m.a(x) * 3.0), {}, {"a": ("c",)}),
    (lambda m, x: m.c(m.a(x) * torch.sigmoid(m.b(x))), {}, {"a": ("c",)}),
    (lambda m, x: m.c(m.a(x) / (x.abs() + 1)), {}, {"a": ("c",)}),
    (lambda m, x: m.c(torch.relu(m.a(x)) - m.b(x)), {}, {"a": ("c",), "b": ("c",)}),
    (lambda m, x: m.c(m.a(x) + m.b(x).mean((2, 3), keepdim=True)), {}, dict.fromkeys("ab", ("c",))),
    (lambda m, x: (lambda y: m.b(y + torch.relu(y)))(m.a(x)), {}, {"a": ("b",)}),
    (
        lambda m, x: (lambda y: m.c(y + torch.relu(m.b(y))))(m.a(x)),
        {},
        {"a": ("b", "c"), "b": ("b", "c")},
    ),
    (
        lambda m, x: m.d(m.c(x) + torch.relu(m.a(x) + m.b(x))),
        {"d": conv()},
        dict.fromkeys("abc", ("d",)),
    ),
]


@pytest.mark.parametrize(("function", "layers", "expected"), PATHS)
def test_scales_pass_through_what_is_proportional(
    function: Any, layers: Any, expected: dict[str, tuple[str, ...]]
) -> None:
    result = equalized(captured(function, **layers))
    assert scaled(result) == expected
    assert error_of(result) < 1e-13


@pytest.mark.parametrize(
    ("function", "code", "reason"),
    [
        (lambda m, x: m.b(F.relu6(m.a(x))), "nonlinear", "`clamp` (clamp) does not pass"),
        (lambda m, x: m.b(torch.tanh(m.a(x))), "nonlinear", "`tanh` (tanh) does not pass"),
        (lambda m, x: m.b(F.silu(m.a(x))), "nonlinear", "`silu` (silu) does not pass"),
        (lambda m, x: m.b(x + m.a(x)), "nonlinear", "`x`, which cannot be scaled, is added"),
        (lambda m, x: m.b(m.a(x) + 1.0), "nonlinear", "`add` adds `1.0` to it"),
        (lambda m, x: m.c(m.a(x) + m.b(x)[:, :1]), "nonlinear", "`add` adds `slice_1` to it"),
        (
            lambda m, x: (lambda y: m.c(m.a(x) + y) + torch.tanh(y))(m.b(x)),
            "nonlinear",
            "`b`, which cannot be scaled, is added to it",
        ),
        (
            lambda m, x: (lambda y, z: m.c(y + z) + m.d(y * z))(m.a(x), m.b(x)),
            "nonlinear",
            "added to others, and goes into `mul`",
        ),
        (
            lambda m, x: m.d(m.a(x) * m.b(x) + m.c(x)),
            "nonlinear",
            "`mul`, which cannot be scaled, is added to it",
        ),
        (lambda m, x: (lambda y: m.b(y * y))(m.a(x)), "nonlinear", "`mul` (mul) does not pass"),
        (
            lambda m, x: (lambda y: m.b(y * torch.relu(y)))(m.a(x)),
            "nonlinear",
            "`mul` (mul) reads it in two ways",
        ),
        (lambda m, x: m.b(x / (m.a(x).abs() + 1)), "nonlinear", "does not pass a scale on"),
        (lambda m, x: m.b(m.a(x).mean(1, keepdim=True) + x), "nonlinear", "(mean) does not pass"),
        (lambda m, x: m.b(torch.cat((m.a(x), x), 2)), "nonlinear", "(concat) does not pass"),
        (lambda m, x: m.a(x), "leak", "`a` is an output, which must not be scaled"),
        (lambda m, x: (lambda y: (y, m.b(y)))(torch.relu(m.a(x))), "leak", "`relu` is an output"),
        (
            lambda m, x: (lambda y: m.b(y[:, [0, 1, 2, 3]]) + m.c(torch.relu(y)))(m.a(x)),
            "nonlinear",
            "does not pass a scale on",
        ),
    ],
)
def test_what_may_not_be_touched_is_left_and_named(function: Any, code: str, reason: str) -> None:
    result = equalized(captured(function, d=conv()))
    assert "a" not in scaled(result)
    (left,) = [r for r in result.details(Refusal) if r.root == "a"]
    assert left.code == code
    assert code in CODES
    assert reason in left.reason
    assert left.source.startswith("test_equalize.py:")


def test_layers_that_are_added_take_the_scales_of_the_widest() -> None:
    program = captured(lambda m, x: m.c(m.a(x) + m.b(x)))
    result = equalized(program)
    first, second = (ranges(result, name) / ranges(program, name) for name in ("a", "b"))
    torch.testing.assert_close(first, second)
    widest = torch.maximum(ranges(program, "a"), ranges(program, "b"))
    power = widest * first / widest ** (1 / 3)
    torch.testing.assert_close(power, power[:1].expand_as(power))


def test_a_slice_of_some_scaled_channels_is_refused() -> None:
    result = equalized(
        captured(lambda m, x: (lambda y: (m.b(y), m.c(y[:, 2:])))(m.a(x)), c=conv(2))
    )
    (left,) = [r for r in result.details(Refusal) if r.root == "a"]
    assert left.code == "leak"
    assert "takes a part of its channels" in left.reason


def test_dead_channels_stay_and_outliers_are_named() -> None:
    program = captured(lambda m, x: m.b(torch.relu(m.a(x))), a=conv(4, 16), b=conv(16))
    a: Any = program.module.a
    with torch.no_grad():
        a.weight.copy_(torch.rand_like(a.weight) + 0.5)
        a.bias.zero_()
        a.weight[3], a.weight[5] = 0, a.weight[5] * 50
        a.bias[4], a.weight[4] = -1.0, 0.0
    result = equalized(program)
    (detail,) = result.details(Equalized)
    assert (detail.dead, detail.outliers) == ((3, 4), (5,))
    new: Any = result.module.a
    assert torch.equal(new.weight[3:5], a.weight[3:5])
    assert torch.equal(new.bias[3:5], a.bias[3:5])


def test_factors_are_bounded() -> None:
    program = captured(lambda m, x: m.b(torch.relu(m.a(x))))
    a: Any = program.module.a
    with torch.no_grad():
        a.weight[0], a.bias[0] = a.weight[0] * 1e-12, a.bias[0] * 1e-12
    before, after = ranges(program, "relu"), ranges(equalized(program), "relu")
    assert float((after / before)[0]) == pytest.approx(256)


def merged(function: Any, ratio: float) -> Program:
    program = captured(function)
    b: Any = program.module.b
    with torch.no_grad():
        b.weight.mul_(ratio)
    steps = parse_passes("fuse-gates{always=true},clip-gates")
    return fuseq.Pipeline(steps).run(program)


def test_the_halves_of_a_merged_convolution_come_to_one_range() -> None:
    program = merged(lambda m, x: m.c(m.a(x) * m.b(x)), 16.0)
    result = equalized(program)
    assert result.history[-1].rewrites == 2
    halves = ranges(result, "a_and_b").reshape(2, 4).amax(1)
    torch.testing.assert_close(halves[0], halves[1])
    before = ranges(program, "a_and_b").reshape(2, 4).amax(1)
    assert float(before.max() / before.min()) > 1.5


def test_the_linear_half_goes_to_the_range_of_the_clipped_one() -> None:
    result = equalized(merged(lambda m, x: m.c(m.a(x) * torch.sigmoid(m.b(x))), 100.0))
    assert float(ranges(result, "a_and_b")[:4].amax()) == pytest.approx(8.0, rel=1e-5)
    assert [detail.channels for detail in result.details(Equalized)] == [(0, 4)]
    assert "clamp" in next(iter(result.details(Refusal))).reason


def test_ranges_are_those_of_all_batches_however_they_are_split() -> None:
    program = captured(lambda m, x: m.b(torch.relu(m.a(x))))
    parts = [image[None] for batch in reversed(DATA) for image in batch]
    first = rewrite.apply(Equalize(calibration=DATA), program)
    second = rewrite.apply(Equalize(calibration=parts), program)
    for name, value in first.module.state_dict().items():
        torch.testing.assert_close(second.module.state_dict()[name], value)


def test_an_iterator_of_data_is_enough_for_fuse() -> None:
    model = captured(lambda m, x: m.b(torch.relu(m.a(x))))
    for passes in ("fuse-affine,equalize", "recalibrate-bn,fuse-affine"):
        report = fuseq.fuse(model, passes=passes, calibration=iter(DATA)).report
        assert report is not None
        assert report["max_rel_error_f64"] < 1e-12


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (None, "FQ202"),
        ([], "FQ006"),
        ([torch.rand(1, 3, 8, 8)], "FQ006"),
        ([torch.full((1, 4, 8, 8), float("nan"))], "FQ401"),
    ],
)
def test_data_that_cannot_be_used_is_refused(data: Any, code: str) -> None:
    with pytest.raises(FuseqError, match=code):
        rewrite.apply(Equalize(calibration=data), captured(lambda m, x: m.b(m.a(x))))


@pytest.mark.parametrize("passes", ["equalize", "fuse-affine,legalize,equalize"])
def test_a_wrong_order_is_refused(passes: str) -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), Call(lambda m, x: torch.cat((x, x), 1)))
    program = fuseq.capture(model.eval(), DATA[0])
    with pytest.raises(FuseqError, match="FQ201"):
        fuseq.Pipeline(parse_passes(passes, profile=PROFILE, calibration=DATA)).run(program)


def test_layers_that_share_a_weight_get_their_own() -> None:
    first, second = conv(), conv()
    second.weight = first.weight
    result = equalized(
        captured(lambda m, x: m.c(torch.tanh(m.b(torch.relu(m.a(x))))), a=first, b=second)
    )
    assert list(scaled(result)) == ["a"]
    assert ops.count(result, "conv2d") == 3


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gates_reach_the_figures_of_the_reference_study(case: Case) -> None:
    """The benchmark's table at its first seeds; min-max ranges, 8 bit weights and activations."""
    merged = "fuse-gates{always=true},"
    plain, reached = (
        statistics.mean(gate_sqnr(case, passes, seed) for seed in (0, 1))
        for passes in (merged, f"{merged}clip-gates,equalize,")
    )
    assert reached >= case.reference[2]
    assert reached - plain > 5


def test_integers_stay_those_of_the_runtime(tmp_path: Path) -> None:
    batches = [torch.rand(1, 3, 64, 64) for _ in range(4)]
    bundle = fuseq.lower(
        gated.small(),
        batches[0],
        passes="recalibrate-bn,fuse-affine,fuse-gates,clip-gates,equalize,legalize,quantize",
        calibration=batches,
        out=tmp_path / "out",
    )
    assert bundle.result is not None
    bundle.result.raise_for_status()
    parity = [check.metrics for check in bundle.result.checks if check.kind == "parity"]
    assert [metrics["differing"] for metrics in parity] == [0, 0, 0]
