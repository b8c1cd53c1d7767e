"""Every PyTorch spelling users write: captured by both front ends, compared with the module.

The module itself is the oracle, at the captured size and at a second one with odd borders. A
spelling that should end in the canonical vocabulary must leave no foreign op behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fuseq
from fuseq import ops
from fuseq.errors import FuseqError

SHAPE = (1, 4, 10, 8)


@dataclass(frozen=True)
class Spelling:
    """One way to write something.

    Attributes:
        id: name of the test.
        write: a function of one tensor, or a function without arguments that makes a module.
        shape: of the captured input.
        foreign: names of the foreign ops it leaves.
        front_ends: those that can record it for all sizes.
        free: dimensions that change from the captured size to the second.
    """

    id: str
    write: Callable[..., Any]
    shape: tuple[int, ...] = SHAPE
    foreign: frozenset[str] = frozenset()
    front_ends: tuple[str, ...] = ("fx", "export")
    free: tuple[int, ...] = (0, 2, 3)

    def module(self) -> nn.Module:
        torch.manual_seed(0)
        if self.write.__code__.co_argcount:
            return Lambda(self.write)
        module: nn.Module = self.write()
        return module


class Lambda(nn.Module):
    """A function between two layers, so that it meets a value and not an input."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.first(x))


def module(id: str, make: Callable[[], nn.Module], **options: Any) -> Spelling:
    return Spelling(id, lambda: nn.Sequential(make()), **options)


def foreign(*names: str) -> frozenset[str]:
    return frozenset(names)


class Holding(nn.Module):
    """A module with a parameter and a buffer, used by a function of the module and the input."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4, 1, 1) + 0.5)
        self.register_buffer("mean", torch.rand(1, 4, 1, 1))
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def holding(id: str, function: Callable[[Any, Tensor], Any], **options: Any) -> Spelling:
    return Spelling(id, lambda: Holding(function), **options)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(4, 2), nn.ReLU(inplace=True), nn.Linear(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = F.adaptive_avg_pool2d(x, 1).view(b, c)
        y = torch.sigmoid(self.fc(y)).view(b, c, 1, 1)
        y = y.expand_as(x)
        return x * y


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = self.norm(self.conv(x))
        return x


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = self.b(x)
        return x


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.rand(x.shape[0], 1, 1, 1) > 0.5
        return x * keep


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.path = nn.Conv2d(4, 4, 1), DropPath()
        self.drop = nn.Dropout2d(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.conv(x), 0.3, training=self.training)
        x = x + self.path(self.drop(y))
        return x


class Frame(nn.Module):
    """Pads with the bias, the way diverse-branch blocks write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(self.conv(x), (1, 1, 1, 1))
        assert self.conv.bias is not None
        bias = self.conv.bias.view(1, -1, 1, 1)
        y[:, :, 0:1, :] = bias
        y[:, :, -1:, :] = bias
        y[:, :, :, 0:1] = bias
        y[:, :, :, -1:] = bias
        return y


class Writing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        y[:, :, 1:-1] = x[:, :, 1:-1] * 2
        y[:, 0] = x[:, 1]
        return y


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > 4:
            x = x * 2
        return x


class Auxiliary(nn.Module):
    """Two outputs in training, one in eval."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return (y, y * 2) if self.training else y


class NormSubclass(nn.BatchNorm2d):
    pass


class NoOutputNames(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"b": x + 1, "a": [x * 2, (x, x - 1)]}


def windows(x: Tensor) -> Tensor:
    """Swin's window partition and its inverse, channels last."""
    x = x.permute(0, 2, 3, 1)
    b, h, w, c = x.shape
    y = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
    y = torch.softmax(y, -1)
    y = y.view(b, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5)
    return y.reshape(b, h, w, c).permute(0, 3, 1, 2)


def shuffle(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def relu_inplace(x: Tensor) -> Tensor:
    y = x * 2
    y.relu_()
    return y


def residual_inplace(x: Tensor) -> Tensor:
    y = x * 2 - 1
    z = F.relu(y, inplace=True)
    return z + y


def view_inplace(x: Tensor) -> Tensor:
    y = x * 2 - 1
    half = y[:, :2]
    half.mul_(3)
    return y


def accumulate(x: Tensor) -> Tensor:
    y = x * 2
    y += x
    y -= 1
    y *= 3
    y /= 2
    return y


LAYERS = [
    module("conv2d", lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2)),
    module("conv2d-reflect", lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
    module("conv2d-circular", lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")),
    module("conv2d-replicate", lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate")),
    module("conv2d-same", lambda: nn.Conv2d(4, 4, (3, 5), padding="same", dilation=2)),
    module("conv2d-same-even", lambda: nn.Conv2d(4, 4, (2, 4), padding="same")),
    module("conv2d-valid", lambda: nn.Conv2d(4, 4, 3, padding="valid")),
    module("conv-transpose", lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2)),
    module("batch-norm", lambda: nn.BatchNorm2d(4, eps=1e-3)),
    module("batch-norm-plain", lambda: nn.BatchNorm2d(4, affine=False)),
    module("batch-norm-subclass", lambda: NormSubclass(4)),
    module("sync-batch-norm", lambda: nn.SyncBatchNorm(4)),
    module(
        "batch-norm-1d",
        lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)),
        shape=(2, 4),
        free=(0,),
    ),
    module("group-norm", lambda: nn.GroupNorm(2, 4)),
    module("group-norm-plain", lambda: nn.GroupNorm(2, 4, affine=False)),
    module("instance-norm", lambda: nn.InstanceNorm2d(4, affine=True)),
    module("instance-norm-plain", lambda: nn.InstanceNorm2d(4)),
    module("instance-norm-tracking", lambda: nn.InstanceNorm2d(4, track_running_stats=True)),
    module("layer-norm", lambda: nn.LayerNorm((4,)), shape=(2, 7, 4), free=(0,)),
    module("prelu", lambda: nn.PReLU(4)),
    module("prelu-one", lambda: nn.PReLU()),
    module("linear-2d", lambda: nn.Linear(4, 3), shape=(2, 4), free=(0,)),
    module("linear-4d", lambda: nn.Linear(8, 3), shape=(2, 4, 6, 8), free=(0, 2)),
    holding("functional-conv", lambda m, x: F.conv2d(x, m.conv.weight, padding=1)),
    holding("keywords", lambda m, x: F.conv2d(input=x, weight=m.conv.weight, bias=m.conv.bias)),
    module("weight-norm", lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 3))),
    module("spectral-norm", lambda: parametrizations.spectral_norm(nn.Conv2d(4, 4, 3))),
    module("twice", Twice),
    module("tied", Tied),
    module("dropping", Dropping),
    module("squeeze-excite", SqueezeExcite),
    module("auxiliary", Auxiliary),
    module("containers", NoOutputNames),
]

ACTIVATIONS = [
    module("relu", lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True))),
    module("relu6", lambda: nn.ReLU6()),
    module("hardtanh", lambda: nn.Hardtanh(-2, 0.5)),
    module("hardswish", lambda: nn.Hardswish(inplace=True)),
    module("hardsigmoid", lambda: nn.Hardsigmoid()),
    module("silu", lambda: nn.SiLU(inplace=True)),
    module("gelu", lambda: nn.GELU()),
    module("gelu-tanh", lambda: nn.GELU("tanh")),
    module("leaky-relu", lambda: nn.LeakyReLU(0.2, inplace=True)),
    module("softmax", lambda: nn.Softmax(-3)),
    module("glu", lambda: nn.GLU(1)),
    module("elu", lambda: nn.ELU(inplace=True), foreign=foreign("elu")),
    module("mish", lambda: nn.Mish(inplace=True), foreign=foreign("mish")),
    Spelling("sigmoid", lambda x: x.sigmoid() + F.sigmoid(x) + torch.sigmoid(x)),
    Spelling("tanh", lambda x: x.tanh() + F.tanh(x)),
    Spelling("relu-in-place", relu_inplace, front_ends=("export",)),
    Spelling("clamp", lambda x: x.clamp(0, 1) + x.clamp(min=0) + torch.clip(x, max=0.5)),
    Spelling("clamp-min", lambda x: x.clamp_min(0.1) + torch.clamp_max(x, 0.3)),
    Spelling("clamp-in-place", lambda x: (x * 2).clamp_(-1, 1)),
]

ARITHMETIC = [
    Spelling("operators", lambda x: (2 * x - 1) / 3 + (1 - x) - x / (x * x + 1)),
    Spelling("reciprocal", lambda x: 2 / (x.sigmoid() + 1) + (x.tanh() + 2).reciprocal()),
    Spelling("power", lambda x: x**2 + x.square() + torch.pow(x, 2) + x**1),
    Spelling("power-foreign", lambda x: x.sigmoid() ** 0.5, foreign=foreign("pow")),
    Spelling("neg", lambda x: -x + x.neg() - torch.neg(x)),
    Spelling("methods", lambda x: x.add(1).sub(x, alpha=2).mul(3).div(4).subtract(1)),
    Spelling("alpha", lambda x: torch.add(x, x, alpha=0.5) + torch.rsub(x, 2)),
    Spelling("in-place", accumulate),
    Spelling("residual-in-place", residual_inplace, front_ends=("export",)),
    Spelling("view-in-place", view_inplace, front_ends=("export",)),
    Spelling("matmul", lambda x: x @ x.transpose(-1, -2) + torch.matmul(x, x.mT)),
    holding("buffer", lambda m, x: (x - m.mean) / m.scale),
    holding("parameter-left", lambda m, x: m.scale * x + m.mean * m.scale),
    Spelling("tensor-in-forward", lambda x: x * torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1)),
    Spelling("ints", lambda x: x * x.shape[2] + x.size(-1) // 2),
    Spelling("sum", lambda x: x.sum((2, 3)) + x.amax(dim=(2, 3)), foreign=foreign("sum", "amax")),
    Spelling("mean", lambda x: x.mean((2, 3), keepdim=True) + torch.mean(x, [-1, -2], True)),
    Spelling("mean-numpy", lambda x: x.mean(axis=1, keepdims=True)),
]  # fmt: skip

POOLING = [
    module("max-pool", lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
    module("max-pool-dilated", lambda: nn.MaxPool2d((3, 2), stride=1, dilation=2)),
    module("avg-pool", lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)),
    module("avg-pool-divisor", lambda: nn.AvgPool2d(2, divisor_override=3)),
    module("global-pool", lambda: nn.AdaptiveAvgPool2d(1)),
    module("adaptive-pool", lambda: nn.AdaptiveAvgPool2d((3, None))),
    module("adaptive-max", lambda: nn.AdaptiveMaxPool2d(1), foreign=foreign("adaptive_max_pool2d")),
    Spelling("pool-of-its-size", lambda x: F.avg_pool2d(x, x.shape[2:]), front_ends=("fx",)),
    module("upsample", lambda: nn.Upsample(scale_factor=2)),
    module("upsample-bilinear", lambda: nn.Upsample(scale_factor=(2, 3), mode="bilinear")),
    module("upsample-corners", lambda: nn.UpsamplingBilinear2d(scale_factor=2)),
    module("upsample-size", lambda: nn.Upsample(size=(16, 12))),
    Spelling("upsample-like", lambda x: F.interpolate(F.max_pool2d(x, 2), x.shape[2:]) + x),
    Spelling(
        "upsample-computed",
        lambda x: F.interpolate(x, size=(x.shape[2] * 2, x.size(3) + 1), mode="bilinear"),
    ),
    Spelling(
        "bicubic",
        lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
        foreign=foreign("interpolate", "upsample_bicubic2d"),
    ),
]

MOVING = [
    module("pixel-shuffle", lambda: nn.PixelShuffle(2)),
    module("pixel-unshuffle", lambda: nn.PixelUnshuffle(2)),
    module("channel-shuffle", lambda: nn.ChannelShuffle(2)),
    Spelling("channel-shuffle-by-hand", shuffle),
    Spelling("windows", windows),
    module("reflection-pad", lambda: nn.ReflectionPad2d((1, 2, 0, 1))),
    module("replication-pad", lambda: nn.ReplicationPad2d(1)),
    module("constant-pad", lambda: nn.ConstantPad2d((1, 0, 2, 1), 0.5)),
    Spelling("pad-and-crop", lambda x: F.pad(F.pad(x, (1, 1, 1, 1), "circular"), (-1, 0, 0, -1))),
    Spelling("chunk", lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)),
    Spelling("chunk-rows", lambda x: torch.cat(torch.chunk(x, 2, dim=2)[::-1], 2)),
    Spelling("split", lambda x: torch.cat([torch.split(x, [1, 3], 1)[1], x.split(2, dim=1)[0]], 1)),
    Spelling("unbind", lambda x: torch.stack(x.unbind(1)[::-1], 1)),
    Spelling("narrow", lambda x: x.narrow(1, 1, 2) + torch.narrow(x, 1, 0, 2)),
    Spelling("slices", lambda x: x[:, 1:3, ::2, 1:-1]),
    Spelling("negative-slices", lambda x: x[:, -2:, :, :-1] + x[:, :-2, :, 1:]),
    Spelling("ellipsis-none", lambda x: x[..., None].squeeze(-1) + x[:, None, ..., 1:2][:, 0]),
    Spelling("index", lambda x: x[:, 0] + x[:, -1] - x.select(1, 2)),
    Spelling("fancy-index", lambda x: x[:, [2, 1, 0, 3]], foreign=foreign("getitem", "index")),
    Spelling("stack", lambda x: torch.stack([x, x * 2], dim=-1).flatten(-2)),
    Spelling("concat", lambda x: torch.concat((x, x * 2), -3)),
    Spelling("flatten", lambda x: torch.flatten(x, 1).unsqueeze(-1) + x.flatten(1)[..., None]),
    Spelling("reshape", lambda x: x.reshape(x.shape[0], -1, 2).view(x.size(0), 4, -1)),
    Spelling("reshape-as", lambda x: x.flatten(2).view_as(x)),
    Spelling("unflatten", lambda x: x.flatten(2).unflatten(2, (x.shape[2], -1))),
    Spelling("permute", lambda x: x.permute(0, 2, 3, 1).transpose(1, -1).swapaxes(2, 3)),
    Spelling("movedim", lambda x: x.movedim(1, -1) * 2),
    Spelling("squeeze", lambda x: x.mean(3, keepdim=True).squeeze(3).unsqueeze(1).squeeze(dim=1)),
    Spelling("expand", lambda x: x.mean(1, keepdim=True).expand(-1, 4, -1, -1) * x),
    module("write-frame", Frame, front_ends=("export",), foreign=foreign("expand.default")),
    module("write-slices", Writing, front_ends=("export",)),
    module("branch-on-shape", Branching, front_ends=("export",)),
]  # fmt: skip

SPELLINGS = LAYERS + ACTIVATIONS + ARITHMETIC + POOLING + MOVING
BY_ID = {spelling.id: spelling for spelling in SPELLINGS}


def scrambled(module: nn.Module) -> nn.Module:
    """Statistics off their defaults, in training mode: what users hand over."""
    for part in module.modules():
        for name, statistic in part.named_buffers(recurse=False):
            if name == "running_mean":
                statistic.normal_()
            if name == "running_var":
                statistic.uniform_(0.5, 2)
    return module.train()


def foreign_ops(program: fuseq.Program) -> set[str]:
    names = {ops.name_of(program, node) for node in program.graph.nodes}
    return {name.removeprefix("foreign:") for name in names if name.startswith("foreign:")}


TRAINING = "the model was in training mode: captured as in eval"
BELOW = "below 5 of dimension 3 of `input` the model branches: the program is valid from there on"
CASES = [(s.id, front_end) for s in SPELLINGS for front_end in s.front_ends]


@pytest.mark.parametrize(("id", "front_end"), CASES)
def test_spelling(id: str, front_end: str) -> None:
    spelling = BY_ID[id]
    model = scrambled(spelling.module())
    x = torch.randn(spelling.shape)
    program = fuseq.capture(model, x, front_end=front_end)
    model.eval()
    second = tuple(n + (2 + 2 * d) * (d in spelling.free) for d, n in enumerate(spelling.shape))
    for shape in (spelling.shape, second):
        y = torch.randn(shape)
        expected, actual = model(y.clone()), program(y)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    allowed = {TRAINING, BELOW} if id == "branch-on-shape" else {TRAINING}
    assert set(program.origin.notes) <= allowed
    found = {name.partition(".")[0] for name in foreign_ops(program)}
    assert found <= {name.partition(".")[0] for name in spelling.foreign}


@pytest.mark.parametrize("id", [s.id for s in SPELLINGS if "fx" not in s.front_ends])
def test_auto_takes_export_where_fx_is_wrong(id: str) -> None:
    model, x = BY_ID[id].module(), torch.randn(SHAPE)
    with pytest.raises(FuseqError) as refused:
        fuseq.capture(model, x, front_end="fx")
    assert refused.value.code in ("FQ101", "FQ104")
    program = fuseq.capture(model, x)
    assert program.origin.front_end == "export"
    assert not any("captured" in note for note in program.origin.notes if note != TRAINING)
