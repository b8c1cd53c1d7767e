from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq import ops, plugins, rewrite
from fuseq.affine.refusal import CODES, Refusal
from fuseq.errors import FuseqError
from fuseq.pass_spec import parse_passes
from fuseq.program import Program
from fuseq.quant.profile import Profile
from fuseq.text import to_text
from tests.networks import gated
from tests.passes.block import Call

FuseGates = plugins.load("passes", "fuse-gates")
PROFILE: Profile = plugins.load("backends", "onnx").profile


def conv(outputs: int = 4, kernel: int | tuple[int, int] = 3, **options: Any) -> nn.Conv2d:
    padding = kernel // 2 if isinstance(kernel, int) else tuple(k // 2 for k in kernel)
    return nn.Conv2d(4, outputs, kernel, **{"padding": padding, **options})


def captured(function: Callable[..., Any], **layers: nn.Module) -> Program:
    torch.manual_seed(0)
    layers = layers or {"a": conv(), "b": conv()}
    return fuseq.capture(Call(function, **layers).eval(), torch.rand(2, 4, 6, 8))


def merged(program: Program, profile: Profile | None = PROFILE, **options: Any) -> Program:
    """Held to its promise on the float64 twin by `apply`."""
    return rewrite.apply(FuseGates(profile=profile, **options), program)


def product(m: Any, x: Tensor) -> Tensor:
    return m.a(x) * m.b(x)


def refusals(program: Program) -> list[str]:
    return [f"{r.code}: {r.reason}" for r in program.details(Refusal)]


def test_one_convolution_and_two_slices() -> None:
    result = merged(captured(lambda m, x: m.a(x) * torch.sigmoid(m.b(x))))
    assert (
        to_text(result)
        == """\
%x = input() : f32[2,4,6,8]
%a_and_b = conv2d(%x) channels=4->8 kernel=3x3 padding=(1, 1) : f32[2,8,6,8]
%slice_tensor_1 = slice(%a_and_b) dim=1 start=0 end=4 step=1 : f32[2,4,6,8]
%slice_tensor = slice(%a_and_b) dim=1 start=4 end=8 step=1 : f32[2,4,6,8]
%sigmoid = sigmoid(%slice_tensor) : f32[2,4,6,8]
%mul = mul(%slice_tensor_1, %sigmoid) : f32[2,4,6,8]
return %mul
"""
    )
    (detail,) = result.history[-1].details
    assert (detail.convolutions, detail.product, detail.joined) == (("a", "b"), "mul", False)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_shared_activation_runs_once_and_the_skip_concat_is_gone(swapped: bool) -> None:
    def down(m: Any, x: Tensor) -> Any:
        a, b = torch.tanh(m.a(x)), torch.tanh(m.b(x))
        return a * b, torch.cat((b, a) if swapped else (a, b), 1)

    wide, left, right = "b_and_a", "_2", "_3"
    if not swapped:
        wide, left, right = "a_and_b", right, left
    result = merged(captured(down))
    assert (
        to_text(result)
        == f"""\
%x = input() : f32[2,4,6,8]
%{wide} = conv2d(%x) channels=4->8 kernel=3x3 padding=(1, 1) : f32[2,8,6,8]
%tanh_2 = tanh(%{wide}) : f32[2,8,6,8]
%slice_tensor_3 = slice(%tanh_2) dim=1 start=0 end=4 step=1 : f32[2,4,6,8]
%slice_tensor_2 = slice(%tanh_2) dim=1 start=4 end=8 step=1 : f32[2,4,6,8]
%mul = mul(%slice_tensor{left}, %slice_tensor{right}) : f32[2,4,6,8]
return (%mul, %tanh_2)
"""
    )
    assert result.history[-1].rewrites == 2


def test_a_concat_of_more_takes_the_wide_value() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        a, b = m.a(x), m.b(x)
        return torch.cat((x, a, b, a * b), 1)

    assert "concat((%x, %a_and_b, %mul)) dim=1" in to_text(merged(captured(forward)))


def test_a_split_that_is_put_together_again_is_the_value_itself() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        p, q, r, s = torch.chunk(m.a(x), 4, 1)
        return torch.cat((p, q, r, s), 1), torch.cat((q, r, p, s), 1)

    result = merged(captured(forward, a=conv(8)))
    assert result.history[-1].rewrites == 2
    assert ops.count(result, "concat") == 1
    assert "slice(%a) dim=1 start=2 end=6 step=1" in to_text(result)


def test_what_else_reads_a_convolution_reads_its_slice() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        a, b = m.a(x), m.b(x)
        return torch.relu(a), torch.tanh(a) * torch.tanh(b), b + x

    result = merged(captured(forward))
    assert (ops.count(result, "conv2d"), ops.count(result, "tanh")) == (1, 1)


@pytest.mark.parametrize(
    ("a", "b", "geometry"),
    [
        (conv(4, 3), conv(4, 1, bias=False), "kernel=3x3 padding=(1, 1)"),
        (conv(4, (3, 1)), conv(4, (1, 5)), "kernel=3x5 padding=(1, 2)"),
        (conv(4, 5, stride=2), conv(4, 3, stride=2), "kernel=5x5 stride=(2, 2) padding=(2, 2)"),
        (conv(4, 3, padding=2, dilation=2), conv(4, 1), "padding=(2, 2) dilation=(2, 2)"),
        (
            conv(4, 3, padding=0, bias=False),
            conv(4, 3, padding=0, bias=False),
            "kernel=3x3 bias=False",
        ),
    ],
)
def test_a_smaller_kernel_is_surrounded_by_zeros(a: Any, b: Any, geometry: str) -> None:
    result = merged(captured(product, a=a, b=b), always=True)
    assert geometry in to_text(result)
    assert ops.count(result, "conv2d") == 1


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        (conv(groups=2), conv(), "groups 2 and 1"),
        (conv(stride=2), conv(), "strides (2, 2) and (1, 1)"),
        (conv(4, 3, padding=0), conv(4, 1, padding=0), "kernels (3, 3) and (1, 1)"),
        (conv(4, 2, padding=1), conv(4, 1), "kernels (2, 2) and (1, 1)"),
        (conv(4, 3, padding=2, dilation=2), conv(), "dilation (2, 2) and (1, 1)"),
        (conv(4, 3), conv(4, 3, padding=2), "padding (1, 1) and (2, 2)"),
    ],
)
def test_what_no_single_convolution_computes_stays(a: Any, b: Any, reason: str) -> None:
    program = captured(product)
    program.module.a, program.module.b = a, b  # whether their maps fit each other is not asked
    assert FuseGates(profile=PROFILE, always=True).run(program) == 0
    (left,) = program.notes
    assert (left.code, left.node, left.root) == ("siblings", "mul", "x")
    assert reason in left.reason


WIDE = {"a": conv(16), "b": conv(16)}


@pytest.mark.parametrize(
    ("function", "layers", "profile", "reason"),
    [
        (product, {}, None, "no target is named"),
        (product, {}, replace(PROFILE, channel_block=0), "names no block of channels"),
        (product, WIDE, PROFILE, "'onnx' computes 16 channels at a time: (16, 16)"),
        (product, {"a": conv(), "b": conv(4, 1)}, PROFILE, "zeros would be multiplied"),
        (lambda m, x: F.relu(m.a(x)) * m.b(x), {}, PROFILE, "`relu` is computed inside its conv"),
    ],
)
def test_what_does_not_pay_stays_unless_asked_for(
    function: Any, layers: Any, profile: Profile | None, reason: str
) -> None:
    program = captured(function, **layers)
    result = merged(program, profile)
    assert result.history[-1].rewrites == 0
    (left,) = result.details(Refusal)
    assert left.code == "cost"
    assert left.code in CODES
    assert reason in left.reason
    assert left.fix == "fuse-gates{always=true}"
    assert merged(program, profile, always=True).history[-1].rewrites == 1


def test_full_blocks_are_merged_where_a_concat_disappears() -> None:
    def skip(m: Any, x: Tensor) -> Any:
        a, b = m.a(x), m.b(x)
        return a * b, torch.cat((a, b), 1)

    assert ops.count(merged(captured(skip, **WIDE)), "conv2d") == 1


def test_of_three_siblings_two_are_merged() -> None:
    three = {"a": conv(), "b": conv(), "c": conv()}

    def forward(m: Any, x: Tensor) -> Any:
        a, b, c = m.a(x), m.b(x), m.c(x)
        return a * b, a * c, torch.tanh(b) * a

    result = merged(captured(forward, **three))
    assert ops.count(result, "conv2d") == 2
    (left,) = result.details(Refusal)
    assert (left.node, left.reason) == ("mul_1", "a factor of it is merged already, for `mul`")


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.a(x) * x,
        lambda m, x: m.a(x) * 2.0,
        lambda m, x: (lambda y: y * torch.sigmoid(y))(m.a(x)),
        lambda m, x: m.a(x) * m.b(torch.relu(x)),
        lambda m, x: m.a(x) + m.b(x),
        lambda m, x: m.a(x)[:, :2] * m.b(x)[:, 2:],
    ],
)
def test_what_is_no_gate_of_siblings_is_not_spoken_of(function: Any) -> None:
    result = merged(captured(function), always=True)
    assert result.history[-1].rewrites == 0
    assert not result.history[-1].details


@pytest.mark.parametrize(
    ("passes", "reason"),
    [
        ("fuse-gates", "requires batch norms folded: 1 are left"),
        ("fuse-affine,legalize,fuse-gates", "requires not legalized"),
        ("fuse-affine,legalize,quantize,fuse-gates", "it is quantized"),
        ("fuse-affine,equalize,fuse-gates", "requires not equalized"),
        ("fuse-affine,equalize,clip-gates", "requires not equalized"),
        ("fuse-affine,legalize,clip-gates", "requires not legalized"),
    ],
)
def test_a_wrong_order_is_refused(passes: str, reason: str) -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), Call(lambda m, x: torch.cat((x, x), 1)))
    program = fuseq.capture(model.eval(), torch.rand(1, 4, 6, 8))
    steps = parse_passes(passes, profile=PROFILE, calibration=[torch.rand(1, 4, 6, 8)])
    with pytest.raises(FuseqError, match="FQ201") as error:
        fuseq.Pipeline(steps).run(program)
    assert reason in str(error.value)


@pytest.mark.parametrize("passes", ["fuse-gates", "fuse-gates{always=true}"])
def test_the_merged_file_computes_the_executors_integers(passes: str, tmp_path: Path) -> None:
    batches = [torch.rand(1, 3, 64, 64) for _ in range(4)]
    bundle = fuseq.lower(
        gated.small(),
        batches[0],
        passes=f"fuse-affine,{passes},legalize,quantize",
        calibration=batches,
        out=tmp_path / "out",
    )
    assert bundle.result is not None
    bundle.result.raise_for_status()
    parity = [check.metrics for check in bundle.result.checks if check.kind == "parity"]
    assert [metrics["differing"] for metrics in parity] == [0, 0, 0]
    assert min(metrics["total"] for metrics in parity) > 1000
