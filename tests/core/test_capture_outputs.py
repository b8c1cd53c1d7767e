"""Outputs in every container, and wrappers around models."""

from __future__ import annotations

import collections
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor, nn

import fuseq

IMAGE = torch.rand(1, 4, 16, 12)


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Record:
    first: Any
    second: Any
    loss: Any = None


class ModelOutput(collections.OrderedDict):  # type: ignore[type-arg]
    """A mapping with attributes, as several libraries return."""

    def __init__(self, **items: Any) -> None:
        super().__init__(items)
        vars(self).update(items)


class Returning(nn.Module):
    anchors: Tensor

    def __init__(self, wrap: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.wrap = nn.Conv2d(4, 4, 3, padding=1), wrap
        self.register_buffer("anchors", torch.rand(5))

    def forward(self, x: Tensor) -> Any:
        return self.wrap(x, self.conv(x), self.anchors)


@pytest.mark.parametrize("front_end", ["fx", "export"])
@pytest.mark.parametrize(
    ("wrap", "form"),
    [
        (lambda x, y, c: Pair(y, [x]), lambda x, y, c: Pair(y, [x])),
        (lambda x, y, c: Pair(y, Pair(x, y)), lambda x, y, c: Pair(y, (x, y))),
        (lambda x, y, c: (y, y, x), lambda x, y, c: (y, y, x)),
        (lambda x, y, c: [y, (c, {"a": y})], lambda x, y, c: [y, (c, {"a": y})]),
        (lambda x, y, c: collections.OrderedDict(a=y), lambda x, y, c: {"a": y}),
        (lambda x, y, c: Record(y, [x]), lambda x, y, c: {"first": y, "second": [x]}),
        (lambda x, y, c: ModelOutput(a=y, b=None), lambda x, y, c: {"a": y}),
        (lambda x, y, c: (y, None), lambda x, y, c: (y,)),
        (lambda x, y, c: y.max(1), lambda x, y, c: tuple(y.max(1))),
        (lambda x, y, c: y.flatten(2).topk(2, -1), lambda x, y, c: tuple(y.flatten(2).topk(2, -1))),
        (lambda x, y, c: c, lambda x, y, c: c),
    ],
)
def test_outputs_keep_their_form(
    wrap: Callable[..., Any], form: Callable[..., Any], front_end: str
) -> None:
    torch.manual_seed(0)
    model = Returning(wrap)
    program = fuseq.capture(model, IMAGE, front_end=front_end)
    x = torch.rand(2, 4, 9, 11)
    expected, actual = form(x, model.conv(x), model.anchors), program(x)
    if not isinstance(expected, dict):  # a dict may come back as another mapping
        assert type(actual) is type(expected)
    torch.testing.assert_close(actual, expected)
    assert len(program.outputs()) == len(program.output_names)
    fused = fuseq.fuse(program)
    assert fused.report is not None
    assert fused.report["max_rel_error_f64"] <= 1e-12


@pytest.mark.parametrize("kind", [Record, ModelOutput])
def test_another_container_is_said(kind: Any) -> None:
    program = fuseq.capture(Returning(lambda x, y, c: kind(first=x, second=y)), IMAGE)
    assert program.origin.notes == (
        f"forward returns {kind.__name__}: the program gives nested tuples, lists and dicts",
    )


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def compiled_in_place() -> nn.Module:
    model = network()
    model.compile()
    return model


@pytest.mark.parametrize(
    "wrap",
    [
        lambda: torch.compile(network()),
        lambda: nn.Sequential(cast(nn.Module, torch.compile(network()))),
        lambda: nn.DataParallel(network()),
        lambda: nn.Sequential(nn.DataParallel(network()), nn.ReLU()),
        lambda: torch.compile(nn.DataParallel(network())),
        compiled_in_place,
    ],
)
def test_wrappers_are_taken_off(wrap: Callable[[], nn.Module]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = wrap()
    program = fuseq.capture(model, IMAGE)
    assert program.origin.front_end == "fx"
    torch.testing.assert_close(program(IMAGE), network()(IMAGE))
