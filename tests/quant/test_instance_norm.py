"""Instance normalization in integers: exact statistics, and the decomposition into plain steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq import ops, plugins, rewrite
from fuseq.quant.arithmetic import OnnxRuntime
from fuseq.quant.grid import Grid, affine_grid
from fuseq.quant.profile import Profile
from fuseq.text import to_text
from tests.quant.qdq import Qdq, any_grid, integers

ORT = OnnxRuntime()
IMAGE = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(0))
OnnxBackend = plugins.load("backends", "onnx")


class Decomposing(OnnxBackend):  # type: ignore[misc, valid-type]
    """A target without an instance norm of its own."""

    profile: ClassVar[Profile] = replace(
        OnnxBackend.profile,
        decompose=OnnxBackend.profile.decompose | {"instance_norm"},
        float_inside=OnnxBackend.profile.float_inside - {"instance_norm"},
    )


class Normed(nn.Module):
    """Two branches summed and normalized, so that fusion ends at the norm."""

    def __init__(self, affine: bool = True) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.b = nn.Conv2d(3, 8, 1)
        self.norm = nn.InstanceNorm2d(8, affine=affine)
        self.last = nn.Conv2d(8, 4, 3, padding=1)
        for parameter in self.norm.parameters():
            nn.init.uniform_(parameter, -2, 2)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.a(x) + self.b(x))
        return self.last(F.leaky_relu(normed, 0.2))


def network(affine: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return Normed(affine).eval()


def normed(q: Tensor, grid: Grid, output_grid: Grid, channels: int) -> Tensor:
    weight, bias = torch.linspace(-1, 2, channels), torch.linspace(-0.5, 0.5, channels)
    return ORT.instance_norm(q, grid, weight, bias, 1e-5, output_grid)


def test_integers_are_those_of_exact_reals() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        grid, output_grid = any_grid(random, "uint8"), affine_grid(-5, 5, "uint8")
        q = integers(random, (2, 3, 9, 7), grid)
        real = grid.dequantize(q).double()
        weight = torch.linspace(-1, 2, 3, dtype=torch.float64)
        bias = torch.linspace(-0.5, 0.5, 3, dtype=torch.float64)
        exact = F.instance_norm(real, weight=weight, bias=bias) / output_grid.scale.double()
        clear = ((exact - exact.floor() - 0.5).abs() > 1e-4).all()  # no tie within float32's reach
        wanted = (exact.round() + output_grid.zero_point).clamp(0, 255)
        distance = (normed(q, grid, output_grid, 3) - wanted).abs()
        assert distance.max() <= (0 if clear else 1)
        assert distance.sum() <= 1


def test_the_order_of_pixels_and_the_layout_change_nothing() -> None:
    random = np.random.default_rng(1)
    grid, output_grid = any_grid(random, "uint8"), affine_grid(-4, 4, "uint8")
    q = integers(random, (1, 4, 300, 411), grid)  # sums of squares far above 2**24
    order = torch.from_numpy(random.permutation(300 * 411))
    straight = normed(q, grid, output_grid, 4)
    shuffled = normed(q.flatten(2)[..., order].reshape(q.shape), grid, output_grid, 4)
    assert torch.equal(straight.flatten(2)[..., order], shuffled.flatten(2))
    last = q.contiguous(memory_format=torch.channels_last)
    assert torch.equal(normed(last, grid, output_grid, 4), straight)


def test_a_constant_map_gives_the_bias() -> None:
    grid, output_grid = affine_grid(-1e4, 1e4, "uint8"), affine_grid(-1, 1, "uint8")
    q = torch.arange(256, dtype=torch.int32).reshape(1, 256, 1, 1).expand(1, 256, 61, 67)
    bias = torch.linspace(-1, 1, 256)
    result = ORT.instance_norm(q, grid, None, bias, 1e-5, output_grid)
    wanted = output_grid.quantize(bias)
    assert torch.equal(result, wanted.reshape(1, 256, 1, 1).expand_as(result))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("backend", [OnnxBackend, Decomposing])
def test_integers_equal_the_runtimes(backend: type, affine: bool, tmp_path: Path) -> None:
    data = [torch.rand(4, 3, 24, 40) * k for k in (0.1, 1.0, 3.0)]
    bundle = fuseq.lower(
        network(affine), IMAGE, backend=backend(), out=tmp_path / "out", calibration=data
    )
    assert bundle.result is not None
    bundle.result.raise_for_status()
    parity = [check.metrics for check in bundle.result.checks if check.id.startswith("parity-")]
    assert [(m["differing"], m.get("float_values", 0)) for m in parity] == [(0, 0)] * 2
    assert bundle.manifest["float_islands"] == []
    assert bundle.manifest["ops"]["bn_after"] == 0


@pytest.mark.parametrize("size", [(3, 5), (211, 307)])
def test_nothing_depends_on_how_a_machine_adds_floats(size: tuple[int, int]) -> None:
    program = fuseq.quantize(network(), IMAGE, calibration=[IMAGE])
    execution = fuseq.execute(program, (torch.rand(2, 3, *size),))
    assert execution.rounded == frozenset()
    assert "norm" in execution.integers


def test_decomposed_form() -> None:
    program = fuseq.fuse(network(), IMAGE)
    legalize = plugins.load("passes", "legalize")(profile=Decomposing.profile)
    result = rewrite.apply(legalize, program)  # held to its promise on the float64 twin
    assert to_text(result).splitlines()[2:-2] == [
        "%mean = mean(%fused) dim=(2, 3) keepdim=True : f32[1,8,1,1]",
        "%sub = sub(%fused, %mean) : f32[1,8,24,40]",
        "%mul = mul(%sub, %sub) : f32[1,8,24,40]",
        "%mean_1 = mean(%mul) dim=(2, 3) keepdim=True : f32[1,8,1,1]",
        "%add = add(%mean_1, 1e-05) : f32[1,8,1,1]",
        "%rsqrt = rsqrt(%add) : f32[1,8,1,1]",
        "%mul_1 = mul(%sub, %rsqrt) : f32[1,8,24,40]",
        "%norm_affine = conv2d(%mul_1) channels=8->8 kernel=1x1 groups=8 : f32[1,8,24,40]",
        "%leaky_relu = leaky_relu(%norm_affine) negative_slope=0.2 : f32[1,8,24,40]",
    ]
    assert torch.allclose(result(IMAGE), program(IMAGE), atol=1e-5)
    assert ops.count(rewrite.apply(legalize, fuseq.fuse(network(False), IMAGE)), "conv2d") == 2


@pytest.mark.parametrize("seed", range(6))
def test_inverse_roots_equal_the_runtimes(seed: int, tmp_path: Path) -> None:
    """Every integer of a grid whose smallest value is zero: its root gives the end of the grid."""
    random = np.random.default_rng(seed)
    scale = torch.tensor(2.0 ** random.uniform(-20, 12), dtype=torch.float32)
    grid = Grid(scale, torch.tensor(0, dtype=torch.int32), "uint8")
    output_grid = affine_grid(0, float(2 * scale**-0.5), "uint8")
    q = torch.arange(256, dtype=torch.int32)
    graph = Qdq()
    root = graph.node("Sqrt", graph.activation(q, grid))
    y = graph.quantize(graph.node("Div", graph.constant(1, "float32"), root), output_grid)
    theirs, _ = graph.run(y, "uint8", tmp_path)
    ours = ORT.rsqrt(q, grid, output_grid)
    assert torch.equal(ours, theirs)
    assert int(ours[0]) == 255


@pytest.mark.parametrize("training", [False, True])
def test_a_norm_with_running_statistics_is_folded_as_a_batch_norm(training: bool) -> None:
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU())
    model(IMAGE)  # moves the statistics
    program = fuseq.fuse(model.train(training), IMAGE)
    assert ops.count(program, "instance_norm", "batch_norm") == 0
    with torch.no_grad():
        torch.testing.assert_close(program(IMAGE), model.eval()(IMAGE))
