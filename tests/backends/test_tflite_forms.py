"""Every op in a TFLite file: floats against torch, integers against both kernel sets of LiteRT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq import plugins
from fuseq.backends.tflite import TfliteBackend
from tests.backends.test_onnx_forms import IMAGE, Attention, Between, tokens
from tests.backends.tflite_files import operators


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(pooled))))


class ChannelsLast(nn.Module):
    """A norm over channels, as ConvNeXt has it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.uniform_(self.norm.bias, -0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.Conv2d(8, 8, 3, 2, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) * torch.tanh(self.right(x))


class Constants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = torch.rand(8, 1, 1) + 0.5, torch.rand(1, 8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x * self.scale) - self.shift + 0.25 * x


def shuffled(x: Tensor) -> Tensor:
    """A channel shuffle."""
    n, c, h, w = x.shape
    return x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


Case = tuple[Callable[[], nn.Module], tuple[Tensor, ...], str]
"""Network, inputs, and the operators between the first and the last convolution."""

CONV = "CONV_2D"
CASES: dict[str, Case] = {
    "stride": (
        lambda: Between(nn.Conv2d(8, 8, 3, stride=2, padding=1)), IMAGE, "PAD CONV_2D"),
    "dilation": (lambda: Between(nn.Conv2d(8, 8, 3, padding=2, dilation=2)), IMAGE, CONV),
    "even kernel": (lambda: Between(nn.Conv2d(8, 8, 4, padding=1)), IMAGE, "PAD CONV_2D"),
    "no bias": (lambda: Between(nn.Conv2d(8, 8, 1, bias=False)), IMAGE, CONV),
    "groups": (lambda: Between(nn.Conv2d(8, 8, 3, groups=2)), IMAGE, CONV),
    "depthwise": (lambda: Between(nn.Conv2d(8, 8, 3, groups=8)), IMAGE, "DEPTHWISE_CONV_2D"),
    "depthwise, twice the channels": (
        lambda: Between(nn.Conv2d(8, 16, 3, groups=8), 16), IMAGE, "DEPTHWISE_CONV_2D"),
    "transposed": (lambda: Between(nn.ConvTranspose2d(8, 8, 2, 2)), IMAGE, "TRANSPOSE_CONV"),
    "transposed and cut": (
        lambda: Between(nn.ConvTranspose2d(8, 8, 4, 2, 1)), IMAGE, "TRANSPOSE_CONV STRIDED_SLICE"),
    "transposed, output padding": (
        lambda: Between(nn.ConvTranspose2d(8, 8, 3, 2, 1, 1)), IMAGE,
        "TRANSPOSE_CONV STRIDED_SLICE"),
    "relu": (lambda: Between(torch.relu), IMAGE, ""),
    "relu of a sum of itself": (lambda: Between(lambda x: torch.relu(x) + x), IMAGE, "RELU ADD"),
    "relu6": (lambda: Between(lambda x: F.relu6(x * 9)), IMAGE, "MUL"),
    "clamp of what others read": (
        lambda: Between(lambda x: x.clamp(-0.2, 0.3) + x), IMAGE, "QUANTIZE ADD"),
    "clamp from below": (
        lambda: Between(lambda x: x.clamp(min=-0.1) * x), IMAGE, "QUANTIZE MUL"),
    "leaky relu": (lambda: Between(nn.LeakyReLU(0.1)), IMAGE, "LEAKY_RELU"),
    "prelu": (lambda: Between(nn.PReLU(8)), IMAGE, "PRELU"),
    "prelu of one slope": (lambda: Between(nn.PReLU()), IMAGE, "PRELU"),
    "hard swish": (lambda: Between(nn.Hardswish()), IMAGE, "HARD_SWISH"),
    "hard sigmoid": (lambda: Between(nn.Hardsigmoid()), IMAGE, "ADD MUL"),
    "silu": (lambda: Between(nn.SiLU()), IMAGE, "LOGISTIC MUL"),
    "gelu": (lambda: Between(nn.GELU()), IMAGE, "GELU"),
    "gelu by tanh": (lambda: Between(nn.GELU("tanh")), IMAGE, "GELU"),
    "tanh": (lambda: Between(torch.tanh), IMAGE, "TANH"),
    "gate of tanh and sigmoid": (
        lambda: Between(lambda x: torch.tanh(x) * torch.sigmoid(x)), IMAGE, "TANH LOGISTIC MUL"),
    "softmax of channels": (lambda: Between(nn.Softmax(1)), IMAGE, "SOFTMAX"),
    "sums and constants": (lambda: Between(Constants()), IMAGE, "MUL SUB MUL ADD"),
    "squeeze and excite": (
        lambda: Between(Gate()), IMAGE, "MEAN CONV_2D CONV_2D LOGISTIC MUL"),
    "instance norm": (
        lambda: Between(nn.InstanceNorm2d(8, affine=True)), IMAGE,
        "MEAN SUB MUL MEAN ADD RSQRT MUL DEPTHWISE_CONV_2D"),
    "instance norm without weights": (
        lambda: Between(nn.InstanceNorm2d(8)), IMAGE, "MEAN SUB MUL MEAN ADD RSQRT MUL"),
    "norm of channels": (
        lambda: Between(ChannelsLast()), IMAGE,
        "TRANSPOSE MEAN SUB MUL MEAN ADD RSQRT MUL MUL ADD TRANSPOSE"),
    "max pool": (lambda: Between(nn.MaxPool2d(2)), IMAGE, "MAX_POOL_2D"),
    "padded max pool": (
        lambda: Between(nn.MaxPool2d(3, 2, 1)), IMAGE, "PADV2 MAX_POOL_2D"),
    "max pool over the edge": (
        lambda: Between(nn.MaxPool2d(3, 2, ceil_mode=True)), IMAGE, "PADV2 MAX_POOL_2D"),
    "max pool over one edge": (
        lambda: Between(nn.MaxPool2d(2, 3, ceil_mode=True)), tokens(1, 3, 12, 13),
        "PADV2 MAX_POOL_2D"),
    "two strides of one map": (
        lambda: Between(Twice()), IMAGE, "PAD CONV_2D CONV_2D TANH MUL"),
    "average pool": (lambda: Between(nn.AvgPool2d(2)), IMAGE, "AVERAGE_POOL_2D"),
    "padded average pool": (
        lambda: Between(nn.AvgPool2d(3, 2, 1)), IMAGE, "PAD AVERAGE_POOL_2D"),
    "means of rows": (
        lambda: Between(lambda x: x - x.mean(3, keepdim=True)), IMAGE, "MEAN SUB"),
    "nearest": (
        lambda: Between(lambda x: F.interpolate(x, scale_factor=2)), IMAGE,
        "RESIZE_NEAREST_NEIGHBOR"),
    "nearest to an odd size": (
        lambda: Between(lambda x: F.interpolate(x, size=(45, 23))), IMAGE,
        "RESIZE_NEAREST_NEIGHBOR"),
    "bilinear": (
        lambda: Between(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")), IMAGE,
        "RESIZE_BILINEAR"),
    "bilinear between corners": (
        lambda: Between(
            lambda x: F.interpolate(x, size=(40, 50), mode="bilinear", align_corners=True)),
        IMAGE, "RESIZE_BILINEAR"),
    "concat": (
        lambda: Between(lambda x: torch.cat([x, torch.tanh(x)], 1), 16), IMAGE,
        "TANH QUANTIZE CONCATENATION"),
    "slices": (
        lambda: Between(lambda x: torch.tanh(x[:, :4]) * x[:, 4:], 4), IMAGE,
        "STRIDED_SLICE TANH STRIDED_SLICE MUL"),
    "every second row": (lambda: Between(lambda x: x[:, :, 1::2]), IMAGE, "STRIDED_SLICE"),
    "pad": (lambda: Between(lambda x: F.pad(x, (1, 2, 0, 1))), IMAGE, "PAD"),
    "reflected pad": (
        lambda: Between(lambda x: F.pad(x, (1, 2, 0, 1), "reflect")), IMAGE, "MIRROR_PAD"),
    "pixel shuffle": (lambda: Between(nn.PixelShuffle(2), 2), IMAGE, "DEPTH_TO_SPACE"),
    "pixel shuffle behind a function": (
        lambda: Between(lambda x: F.pixel_shuffle(torch.tanh(x), 2), 2), IMAGE,
        "TANH DEPTH_TO_SPACE"),
    "pixel shuffle of what others read": (
        lambda: Between(
            lambda x: torch.cat([F.pixel_shuffle(x, 2), F.interpolate(x, scale_factor=2)], 1), 10),
        IMAGE, "RESHAPE TRANSPOSE RESHAPE RESIZE_NEAREST_NEIGHBOR CONCATENATION"),
    "pixel unshuffle": (
        lambda: Between(lambda x: F.pixel_unshuffle(x, 2), 32), IMAGE, "SPACE_TO_DEPTH"),
    "pixel unshuffle before a function": (
        lambda: Between(lambda x: torch.tanh(F.pixel_unshuffle(x, 2)), 32), IMAGE,
        "RESHAPE TRANSPOSE RESHAPE TANH"),
    "channel shuffle": (lambda: Between(shuffled), IMAGE, "RESHAPE TRANSPOSE RESHAPE"),
    "permuted": (lambda: Between(lambda x: x.transpose(2, 3)), IMAGE, "TRANSPOSE"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_function(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, inputs, between = CASES[name]
    bundle = lowered(make(), inputs, tmp_path / "out", "legalize,quantize")  # nothing fused
    file = bundle.file("int8")
    assert file is not None
    assert operators(file) == [CONV, *between.split(), CONV]
    assert bundle.manifest["float_islands"] == []
    assert bundle.manifest["runtime_float_ops"] == {}


def lowered(
    model: nn.Module, inputs: tuple[Tensor, ...], out: Path, passes: str | None = None
) -> fuseq.Bundle:
    """A bundle whose checks all passed, with no integer apart on either kernel set."""
    generator = torch.Generator().manual_seed(1)
    data = [tuple(torch.randn(x.shape, generator=generator) for x in inputs) for _ in range(3)]
    bundle = fuseq.lower(
        model.eval(), inputs, backend="tflite", out=out, calibration=data, passes=passes
    )
    assert bundle.result is not None
    bundle.result.raise_for_status()
    parity = [check for check in bundle.result.checks if check.id.startswith("parity-")]
    assert {check.pair.split()[0] for check in parity} == {"xnnpack", "tflite-ref"}
    for check in parity:
        assert check.metrics["total"] > 0
        assert (check.metrics["differing"], check.metrics.get("float_max_lsb", 0)) == (0, 0)
    return bundle


WHOLE: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "attention": (Attention, IMAGE),
    "dense layers": (
        lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)), tokens(1, 12)),
    "dense layers on tokens": (
        lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)), tokens(2, 7, 12)),
    "classifier over a map": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 8 * 8, 10)), IMAGE),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_whole_networks(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, inputs = WHOLE[name]
    lowered(make(), inputs, tmp_path / "out")


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor] | nn.Module, str]] = {
    "conv_transpose2d": (nn.ConvTranspose2d(8, 8, 2, 2, groups=2), "no groups"),
    "dilated pool": (nn.MaxPool2d(3, 1, dilation=2), "MAX_POOL_2D has no dilation"),
    "pool that does not count": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), "not counted"),
    "bins of unequal size": (nn.AdaptiveAvgPool2d(5), "bins of unequal size"),
    "bicubic": (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), "bicubic"),
    "replicated pad": (lambda x: F.pad(x, (1, 1, 1, 1), "replicate"), "pads by replicate"),
    "foreign": (lambda x: torch.fft.rfft2(x).abs(), "no TFLite operator computes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_format_lacks_is_refused(name: str, tmp_path: Path) -> None:
    function, reason = REFUSED[name]
    with pytest.raises(fuseq.FuseqError, match="FQ501") as caught:
        fuseq.lower(
            Between(function).eval(), IMAGE, backend="tflite", out=tmp_path / "b",
            calibration=[IMAGE],
        )  # fmt: skip
    assert reason in str(caught.value)
    assert "test_tflite_forms.py" in str(caught.value) or "test_onnx_forms.py" in str(caught.value)
    assert not (tmp_path / "b").exists()


def test_all_reasons_come_at_once() -> None:
    def two(x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x, (1, 1, 1, 1), "circular"), 3, 1, dilation=2)

    program = fuseq.capture(Between(two).eval(), IMAGE, dynamic=False)
    found = TfliteBackend().refusals(program)
    assert [refusal.reason.split()[-1] for refusal in found] == ["circular", "dilation"]


def test_what_onnx_quantizes_is_quantized_here_or_named(tmp_path: Path) -> None:
    """DIV has no int8 kernel: the one op that ONNX has in integers and this format in float."""
    theirs, ours = plugins.load("backends", "onnx").profile, TfliteBackend.profile
    theirs = theirs.integer | theirs.float_inside | theirs.same_grid | theirs.tied_inputs
    left = theirs - ours.integer - ours.same_grid - ours.tied_inputs - ours.decompose
    assert left == {"div"}
    divided = Between(lambda x: x / (1 + x * x))
    bundle = lowered(divided, IMAGE, tmp_path / "out", "legalize,quantize")
    assert bundle.manifest["float_islands"] == ["div"]
    assert bundle.manifest["runtime_float_ops"] == {"DIV": 1}
