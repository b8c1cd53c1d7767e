"""What the onnx backend writes of ops with no integer kernel, odd shapes and odd interfaces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq import plugins

IMAGE = (torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)),)


class Between(nn.Module):
    """A convolution, a function, a convolution."""

    def __init__(self, function: Callable[[Tensor], Tensor], inputs: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.function = function
        self.last = nn.Conv2d(inputs, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.depth = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, image: Tensor, depth: Tensor) -> dict[str, Tensor]:
        logits = self.head(torch.relu(self.image(image) + self.depth(depth)))
        return {"logits": logits, "best": logits.argmax(1), "depth": torch.sigmoid(depth)}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.norm = nn.LayerNorm(16)
        self.qkv, self.head = nn.Linear(16, 48), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        weights = (q @ k.transpose(1, 2) * 0.25).softmax(dim=-1)
        return self.head((weights @ v).mean(1))


def tokens(*shape: int) -> tuple[Tensor, ...]:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(0)),)


EXACT_STATISTICS = {
    "Add": 3, "Cast": 2, "Div": 3, "Mul": 6, "ReduceSum": 1, "ReduceSumSquare": 1, "Sign": 1,
    "Sqrt": 1, "Sub": 2,
}  # fmt: skip
"""In float64, but for the last multiplication and addition."""

Case = tuple[nn.Module, tuple[Tensor, ...], list[str], dict[str, int]]
"""Network, inputs, values that stay float, float ops in the runtime."""

CASES: dict[str, Callable[[], Case]] = {
    "transposed convolution": lambda: (
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(6, 4, 1)
        ), IMAGE, [], {"ConvTranspose": 1}),
    "transposed convolution, then integers": lambda: (
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(6, 12, 3, 2, 1, 1, groups=3), nn.ReLU(), nn.Conv2d(12, 4, 1)
        ), IMAGE, [], {"ConvTranspose": 2}),
    "bilinear resize": lambda: (
        Between(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
        IMAGE, [], {"Resize": 1}),
    "nearest resize": lambda: (Between(lambda x: F.interpolate(x, scale_factor=2)), IMAGE, [], {}),
    "pool with a divisor of its own": lambda: (
        Between(lambda x: F.avg_pool2d(x, 2, divisor_override=5)), IMAGE, [], {}),
    "sizes as factors": lambda: (
        Between(lambda x: x * x.shape[3] / x.shape[2]),
        IMAGE, ["mul", "div"], {"Div": 1, "Mul": 1}),
    "pad": lambda: (Between(lambda x: F.pad(x, (1, 2, 0, 1))), IMAGE, [], {}),
    "reflected pad": lambda: (Between(lambda x: F.pad(x, (1, 1, 1, 1), "reflect")), IMAGE, [], {}),
    "pad with a value": lambda: (
        Between(lambda x: F.pad(x, (1, 1, 1, 1), value=9.0)), IMAGE, ["pad"], {}),
    "pixel unshuffle": lambda: (Between(lambda x: F.pixel_unshuffle(x, 2), 32), IMAGE, [], {}),
    "prelu": lambda: (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 4, 1)),
        IMAGE, [], {"PRelu": 1}),
    "instance norm": lambda: (
        Between(nn.InstanceNorm2d(8, affine=True)), IMAGE, [], EXACT_STATISTICS),
    "instance norm without weights": lambda: (
        Between(nn.InstanceNorm2d(8)), IMAGE, [], EXACT_STATISTICS),
    "inverse root": lambda: (
        Between(lambda x: x * torch.rsqrt((x * x).mean((2, 3), keepdim=True) + 0.01)),
        IMAGE, [], {"Div": 1, "Sqrt": 1}),
    "convolution over time": lambda: (
        nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 1)),
        tokens(1, 4, 50), ["conv1d", "conv1d_1"], {"Conv": 2}),
    "dense layers": lambda: (
        nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)), tokens(1, 12), [], {}),
    "dense layers on tokens": lambda: (
        nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)), tokens(2, 7, 12), [], {}),
    "two inputs, a dict of outputs, one of integers": lambda: (
        TwoInputs(), (*IMAGE, *tokens(1, 1, 32, 32)), [], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_rest_is_exact(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs, islands, float_ops = CASES[name]()
    bundle = fuseq.lower(model, inputs, out=tmp_path / "out", calibration=[inputs])
    assert bundle.result is not None
    bundle.result.raise_for_status()
    parity = [check.metrics for check in bundle.result.checks if check.id.startswith("parity-")]
    assert [m["differing"] for m in parity] == [0, 0]
    assert bundle.manifest["float_islands"] == islands
    assert bundle.manifest["runtime_float_ops"] == float_ops


KEPT: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], str]] = {
    "Conv": (lambda: Between(nn.Conv2d(8, 8, 3)), IMAGE, "function"),
    "ConvTranspose": (lambda: Between(nn.ConvTranspose2d(8, 8, 2, 2)), IMAGE, "function"),
    "Gemm": (
        lambda: nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 8), nn.Linear(8, 4)),
        tokens(3, 12), "_1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("op", KEPT)
def test_the_weights_of_a_kept_layer_stay_float_in_the_runtime(op: str, tmp_path: Path) -> None:
    """It would quantize them by itself, with one scale for channels however far apart."""
    torch.manual_seed(0)
    make, inputs, kept = KEPT[op]
    passes = f"legalize,quantize{{keep=('{kept}',)}}"
    bundle = fuseq.lower(make(), inputs, out=tmp_path / "out", calibration=[inputs], passes=passes)
    assert bundle.result is not None
    bundle.result.raise_for_status()
    assert bundle.manifest["float_islands"] == [kept]
    assert bundle.manifest["runtime_float_ops"][op] == 1


def test_attention_keeps_its_accuracy(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bundle = fuseq.lower(Attention(), IMAGE, out=tmp_path / "out", calibration=[IMAGE])
    assert bundle.result is not None
    bundle.result.raise_for_status()
    (fidelity,) = [check.metrics for check in bundle.result.checks if check.kind == "fidelity"]
    assert fidelity["sqnr_db"] > 30
    assert "softmax" in bundle.manifest["float_islands"]


@pytest.mark.parametrize(
    ("size", "islands"), [((4, 8), 0), ((6, 5), 1), ((48, 7), 1)], ids=["equal", "some", "many"]
)
def test_adaptive_pools_of_a_fixed_size(
    size: tuple[int, int], islands: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = Between(nn.AdaptiveAvgPool2d(size))
    backend = plugins.load("backends", "onnx")(dynamic=False)
    bundle = fuseq.lower(
        model, IMAGE, backend=backend, out=tmp_path / "out", calibration=[IMAGE]
    )  # fmt: skip
    assert bundle.result is not None
    bundle.result.raise_for_status()
    assert bundle.manifest["float_islands"] == ["adaptive_avg_pool"] * islands


def test_an_adaptive_pool_of_an_open_size_is_refused(tmp_path: Path) -> None:
    model = Between(nn.AdaptiveAvgPool2d(6))
    with pytest.raises(fuseq.FuseqError, match="FQ501") as caught:
        fuseq.lower(model, IMAGE, out=tmp_path / "out", calibration=[IMAGE])
    assert "cannot lower 1 of the program's nodes" in str(caught.value)
    assert "-b 'onnx{dynamic=False}'" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_refusal_comes_before_calibration_and_writes_nothing_to_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = Between(lambda x: torch.fft.rfft2(x).abs())
    seen: list[str] = []
    with pytest.raises(fuseq.FuseqError, match="FQ501"):
        fuseq.lower(
            model,
            IMAGE,
            out=tmp_path / "out",
            calibration=[IMAGE],
            progress=lambda stage, _: seen.append(stage),
        )
    assert "quantize" not in seen
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
