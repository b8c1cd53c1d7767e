"""Channelwise ops that pass layouts, sums and averages on their way into a layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fuseq
from fuseq import ops
from tests.networks.randomize import randomized
from tests.passes.block import Block


def conv(kernel: int = 1, outputs: int = 8, groups: int = 1) -> nn.Module:
    return nn.Conv2d(8, outputs, kernel, padding=kernel // 2, groups=groups)


ABSORBED: dict[str, nn.Module] = {
    "norm of flattened tokens": Block(
        lambda x, a, n: n((y := a(x.flatten(2).mT)).flatten(0, 1)).reshape_as(y),
        nn.Linear(8, 6),
        nn.BatchNorm1d(6),
    ),
    "norm behind a permute": Block(
        lambda x, a, n: x + 0.3 * n(a(x.relu().permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
        nn.Linear(8, 8),
        nn.BatchNorm2d(8),
    ),
    "norm of a sum of different inputs": Block(
        lambda x, a, b, n: n(a(x) - b(x.relu())), conv(3), conv(), nn.BatchNorm2d(8)
    ),
    "norm of a concatenation": Block(
        lambda x, a, b, n: n(torch.cat([a(x.sigmoid()), b(x.relu())], 1)),
        conv(3),
        conv(1, 4),
        nn.BatchNorm2d(12),
    ),
    "norm of transposed convolutions": Block(
        lambda x, a, b, n: n(torch.cat([a(x.sigmoid()), b(x.relu())], 1)),
        nn.ConvTranspose2d(8, 4, 2, 2, groups=2),
        nn.ConvTranspose2d(8, 4, 2, 2),
        nn.BatchNorm2d(8),
    ),
    "norm behind a bilinear resize": Block(
        lambda x, a, n: n(F.interpolate(a(x.relu()), scale_factor=2, mode="bilinear")).relu(),
        conv(3),
        nn.BatchNorm2d(8),
    ),
    "norm behind a pool that counts its padding not": Block(
        lambda x, a, n: n(F.avg_pool2d(a(x.relu()), 3, 2, 1, count_include_pad=False)),
        conv(3),
        nn.BatchNorm2d(8),
    ),
    "norm read by two layers": Block(
        lambda x, n, a, b: a(y := n(x + x.relu())).relu() + b(y), nn.BatchNorm2d(8), conv(), conv()
    ),
    "norm before a mean": Block(
        lambda x, n, a: a(n(x + x.relu()).mean((2, 3))), nn.BatchNorm2d(8), nn.Linear(8, 5)
    ),
    "norm before tokens": Block(
        lambda x, n, a: a(n(x + x.relu()).flatten(2).mT).relu(), nn.BatchNorm2d(8), nn.Linear(8, 5)
    ),
    "scale before a padded layer": Block(
        lambda x, a, b: a(y := (x + x.relu()) * 0.3).relu() + b(y), conv(3), conv(3, groups=2)
    ),
    "two heads": Block(
        lambda x, n, m, a, b: (a(n(y := x.relu().mean((2, 3)))) + b(m(y))) / 2,
        nn.BatchNorm1d(8),
        nn.BatchNorm1d(8),
        nn.Linear(8, 5),
        nn.Linear(8, 5),
    ),
}

KEPT: dict[str, nn.Module] = {
    "shift before padding": Block(
        lambda x, n, a, b: a(y := n(x + x.relu())).relu() + b(y), nn.BatchNorm2d(8), conv(3), conv()
    ),
    "another reader": Block(
        lambda x, n, a: a(y := n(x + x.relu())).relu() + y, nn.BatchNorm2d(8), conv()
    ),
    "another reader of a sum": Block(
        lambda x, a, b, n: n(y := a(x) + b(x.relu())) * y.sigmoid(),
        conv(),
        conv(),
        nn.BatchNorm2d(8),
    ),
    "pool that counts its padding": Block(
        lambda x, a, n: n(F.avg_pool2d(a(x.relu()), 3, 2, 1)),
        conv(),
        nn.BatchNorm2d(8),
    ),
    "channels mixed by a reshape": Block(
        lambda x, a, n: n(a(x.flatten(2).mT).reshape(x.shape[0], 8, 8, 8)),
        nn.Linear(8, 8),
        nn.BatchNorm2d(8),
    ),
}


def fused(model: nn.Module, front_end: str = "fx") -> fuseq.Program:
    return fuseq.fuse(randomized(model), torch.rand(2, 8, 8, 8), front_end=front_end)


@pytest.mark.parametrize("front_end", ["fx", "export"])
@pytest.mark.parametrize("name", ABSORBED)
def test_layers_take_over(name: str, front_end: str) -> None:
    program = fused(ABSORBED[name], front_end)
    assert not ops.count(program, "batch_norm", "batch_norm1d", "mul", "div")
    assert program.report is not None
    assert program.report["max_rel_error_f64"] < 1e-13
    assert program.report["regions"]
    assert all(region["residual"] < 1e-13 for region in program.report["regions"])


@pytest.mark.parametrize("name", KEPT)
def test_what_would_be_wrong_stays(name: str) -> None:
    assert ops.count(fused(KEPT[name]), "batch_norm") == 1


def test_equal_functions_of_one_value_are_computed_once() -> None:
    model = Block(
        lambda x, a, b: a(F.interpolate(x, scale_factor=2)) + b(F.interpolate(x, scale_factor=2)),
        conv(3),
        conv(),
    )
    program = fused(model)
    assert (ops.count(program, "interpolate_nearest"), ops.count(program, "conv2d")) == (1, 1)


def test_a_size_that_is_read_inside_does_not_keep_a_region_apart() -> None:
    model = Block(
        lambda x, a, n: n(y := a(x)).reshape(y.shape[0], -1, y.shape[2], y.shape[3]),
        conv(3),
        nn.BatchNorm2d(8),
    )
    assert not ops.count(fused(model), "batch_norm")
