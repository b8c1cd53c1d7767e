"""`fuse-affine` on transposed convolutions, nearest resizes, pixel shuffles, tokens and crops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq import ops
from tests.networks.randomize import randomized
from tests.passes.block import Block


def norm(channels: int = 8) -> nn.Module:
    return nn.BatchNorm2d(channels)


def up(
    kernel: int, stride: int, padding: int, extra: int = 0, groups: int = 1, bias: bool = True
) -> nn.Module:
    return nn.ConvTranspose2d(8, 8, kernel, stride, padding, extra, groups, bias)


def twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2)


CASES: dict[str, tuple[nn.Module, list[str]]] = {
    "transposed": (nn.Sequential(up(4, 2, 1), norm()), ["conv_transpose2d"]),
    "transposed, odd size": (nn.Sequential(up(5, 3, 1, groups=2), norm()), ["conv_transpose2d"]),
    "transposed, longer output": (nn.Sequential(up(3, 2, 1, 1), norm()), ["conv_transpose2d"]),
    "transposed branches": (
        Block(lambda x, a, b, c, d: c(a(x)) + d(b(x)), up(4, 2, 1), up(2, 2, 0), norm(), norm()),
        ["conv_transpose2d"],
    ),
    "1x1, then transposed": (
        nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), up(2, 2, 0), norm()),
        ["conv_transpose2d"],
    ),
    "transposed twice": (
        nn.Sequential(up(2, 2, 0, bias=False), nn.ConvTranspose2d(8, 1, 2, 2), norm(1)),
        ["conv_transpose2d"],
    ),
    "branches on an upsampled map": (
        Block(
            lambda x, a, b, c: c(a(u := twice(x)) + b(u) + u),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 8, 1),
            norm(),
        ),
        ["interpolate_nearest", "conv2d"],
    ),
    "1x1 on an upsampled map": (
        nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(8, 4, 1), norm(4)),
        ["conv2d", "interpolate_nearest"],
    ),
    "few channels from an upsampled map": (
        nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(8, 2, 5, padding=2)),
        ["conv2d", "pixel_shuffle"],
    ),
    "up and down again": (
        nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 2, stride=2)),
        ["conv2d"],
    ),
    "norm behind a pixel shuffle": (
        nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.PixelShuffle(2), norm(4)),
        ["conv2d", "pixel_shuffle"],
    ),
    "resized to another value's size": (
        Block(
            lambda x, a, b: b(F.interpolate(a(x), size=(2 * x.shape[2], 2 * x.shape[3]))),
            nn.Conv2d(8, 8, 1),
            norm(),
        ),
        ["conv2d", "interpolate_nearest"],
    ),
    "resized to the size of a sum, one branch of which narrows what another padded": (
        Block(
            lambda x, a, b: F.interpolate(
                F.max_pool2d(y := a(x) + b(x), 2), size=(y.shape[2], y.shape[3])
            ),
            nn.Sequential(nn.Conv2d(8, 8, 1, padding=1), nn.Conv2d(8, 8, 3)),
            nn.Conv2d(8, 8, 1),
        ),
        ["conv2d", "max_pool", "interpolate_nearest"],
    ),
    "resized to the size of a norm behind a stride": (
        Block(
            lambda x, a, b: F.interpolate(
                F.max_pool2d(y := b(a(x)), 2), size=(y.shape[2], y.shape[3])
            ),
            nn.Conv2d(8, 8, 3, 2, 1),
            norm(),
        ),
        ["conv2d", "max_pool", "interpolate_nearest"],
    ),
    "cropped to another value's size": (
        Block(
            lambda x, a, b: a(x)[:, :, : x.shape[2], : x.shape[3]] + b(x),
            nn.Conv2d(8, 8, 4, padding=2),
            nn.Conv2d(8, 8, 1),
        ),
        ["pad", "conv2d"],
    ),
    "a crop of what was padded": (
        Block(
            lambda x, a: a(F.pad(x, (0, 0, 0, 9)))[:, :, 9:],
            nn.Conv2d(8, 8, 1, bias=False),
        ),
        ["pad", "pad", "conv2d"],
    ),
    "sizes of a value that a region shrank": (
        Block(
            lambda x, a, b, n: (
                n(
                    (y := b(a(F.pad(x, (1, 1, 1, 1)))))
                    .relu()
                    .reshape(y.shape[0], -1, y.shape[2], y.shape[3])
                )
                + y
            ),
            nn.Conv2d(8, 8, 1),
            nn.Conv2d(8, 8, 3),
            norm(),
        ),
        ["conv2d", "relu", "reshape", "batch_norm", "add"],
    ),
    "a crop removes the ring": (
        Block(
            lambda x, a, b: b(a(x))[:, :, 1:-1, 1:-1],
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 8, 1, padding=1),
        ),
        ["conv2d"],
    ),
    "vectors": (
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(8 * 64, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.BatchNorm1d(8),
            nn.Linear(8, 8),
        ),
        ["reshape", "linear", "relu", "linear"],
    ),
    "tokens": (
        Block(
            lambda x, a, b: a(t := x.flatten(2).mT) + 0.5 * b(t),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
        ),
        ["reshape", "permute", "linear"],
    ),
}


@pytest.mark.parametrize("front_end", ["fx", "export"])
@pytest.mark.parametrize("name", CASES)
def test_becomes(name: str, front_end: str) -> None:
    model, expected = CASES[name]
    program = fuseq.fuse(randomized(model), torch.rand(2, 8, 8, 8), front_end=front_end)
    kept = [ops.name_of(program, n) for n in program.graph.nodes if n.op.startswith("call")]
    assert [name for name in kept if name != "shape"] == expected
    assert program.report is not None
    assert program.report["max_rel_error_f64"] < 1e-13


def test_phases_of_a_transposed_convolution_may_have_biases_of_their_own() -> None:
    """A kernel smaller than the stride leaves gaps, which a bias before it does not reach."""
    model = nn.Sequential(norm(), nn.ConvTranspose2d(8, 8, 1, 2, 0, 1, bias=False), nn.ReLU())
    program = fuseq.fuse(randomized(model), torch.rand(2, 8, 8, 8))
    assert program.report is not None
    assert [refusal["code"] for refusal in program.report["refused"]] == ["cost"]


def test_a_bias_before_a_transposed_convolution_stays() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 1), up(3, 2, 1, 1))
    report = fuseq.fuse(model, torch.rand(1, 8, 8, 8)).report
    assert report is not None
    assert [refusal["code"] for refusal in report["refused"]] == ["border-bias"]
