"""Stale reads: which recordings of in-place writes can be believed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fuseq.aliasing import stale_read


def write_last(x: Tensor) -> Tensor:
    y = x + 1
    return y.relu_()


def through_the_result(x: Tensor) -> Tensor:
    y = (x + 1).relu_()
    z = y.view(-1)
    return z * 2


def read_before(x: Tensor) -> Tensor:
    y = x + 1
    z = y * 2
    return z + F.relu(y, inplace=True)


def augmented(x: Tensor) -> Tensor:
    y = x + 1
    y += x
    y *= 2
    return y


def sizes(x: Tensor) -> Tensor:
    n = x.shape[2]
    n += 1
    return x.view(-1, n - 1)


def out_of_place_copy(x: Tensor) -> Tensor:
    y = x.clone()
    return y.mul_(2) + x


def old_name(x: Tensor) -> Tensor:
    y = x + 1
    y.relu_()
    return y


def residual(x: Tensor) -> Tensor:
    y = x + 1
    return F.relu(y, True) + y


def earlier_view(x: Tensor) -> Tensor:
    y = x + 1
    first, second = y.chunk(2, 1)
    z = F.silu(y, inplace=True)
    return torch.cat([first, second], 1) * z


def base_of_a_view(x: Tensor) -> Tensor:
    y = x + 1
    y[:, :1].mul_(2)
    return y


def second_write(x: Tensor) -> Tensor:
    y = (x + 1).relu_()
    z = y.mul_(2)
    return y + z


@pytest.mark.parametrize(
    "function", [write_last, through_the_result, read_before, augmented, sizes, out_of_place_copy]
)
def test_believed(function: Callable[[Tensor], Tensor]) -> None:
    traced = fx.symbolic_trace(function)
    assert stale_read(traced.graph) is None
    x = torch.randn(2, 4, 3)
    assert torch.equal(traced(x.clone()), function(x.clone()))


@pytest.mark.parametrize(
    ("function", "write", "read"),
    [
        (old_name, "relu_", "output"),
        (residual, "relu", "add_1"),
        (earlier_view, "silu", "cat"),
        (base_of_a_view, "mul_", "output"),
        (second_write, "mul_", "add_1"),
    ],
)
def test_refused(function: Callable[[Tensor], Tensor], write: str, read: str) -> None:
    found = stale_read(fx.symbolic_trace(function).graph)
    assert found is not None
    assert tuple(node.name for node in found) == (write, read)
