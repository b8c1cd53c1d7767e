"""Channels one by one: how far each reaches over data, and factors on them in weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fuseq import ops
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.quant.calibrate import batches_of


def used(program: Program, value: fx.Node) -> fx.Node:
    """What is used of a value: it behind the relu or clamp that alone reads it."""
    while len(value.users) == 1:
        (user,) = value.users
        if ops.name_of(program, user) not in ("relu", "clamp"):
            break
        value = user
    return value


def channel_ranges(
    program: Program,
    watched: set[fx.Node],
    data: Iterable[Any],
    progress: Callable[[int], None] | None = None,
) -> dict[fx.Node, Tensor]:
    """Largest magnitude of each channel (dimension 1), float64 `[channels]`, over all batches.

    Args:
        program: float program.
        watched: values to look at.
        data: batches of inputs, seen once.
        progress: called with the number of batches seen so far.

    Raises:
        FuseqError: FQ006 for data that is empty or does not fit, FQ401 for a value that is not
            finite.
    """
    watcher = _Watcher(program, watched)
    count = 0
    with torch.no_grad():
        for count, batch in enumerate(batches_of(program, data), start=1):
            watcher.run(*batch)
            if progress:
                progress(count)
    if not count:
        raise FuseqError(
            "FQ006", "the calibration set is empty", fix="give at least one batch of inputs"
        )
    return watcher.ranges


class _Watcher(fx.Interpreter):
    def __init__(self, program: Program, watched: set[fx.Node]) -> None:
        super().__init__(program.module)
        self.extra_traceback = False
        self.program, self.watched = program, watched
        self.ranges: dict[fx.Node, Tensor] = {}

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if node in self.watched:
            largest = result.abs().transpose(0, 1).flatten(1).amax(1).double()
            if not torch.isfinite(largest).all():
                raise FuseqError(
                    "FQ401",
                    f"{self.program.where(node)} has values that are not finite",
                    fix="look at the calibration data for NaN, and at the weights before this node",
                )
            self.ranges[node] = torch.maximum(largest, self.ranges.get(node, largest))
        return result


def scale_rows(layer: nn.Module, first: int, factors: Tensor) -> None:
    """Multiply output channels of a layer, its bias too; edits the layer.

    Args:
        layer: a convolution or linear layer.
        first: channel of the first factor.
        factors: float64; the other channels stay as they are.
    """
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    every = torch.ones(layer.weight.shape[0], dtype=torch.float64)
    every[first : first + len(factors)] = factors
    layer.weight = _scaled(layer.weight, every.reshape(-1, *[1] * (layer.weight.dim() - 1)))
    if layer.bias is not None:
        layer.bias = _scaled(layer.bias, every)


def scale_columns(layer: nn.Module, first: int, factors: Tensor) -> None:
    """Multiply the weights of input channels of a layer; edits the layer.

    Args:
        layer: a convolution, transposed or not, or a linear layer.
        first: channel of the first factor.
        factors: float64; the other channels stay as they are.
    """
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    weight = layer.weight
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    transposed = isinstance(layer, nn.ConvTranspose2d)
    inputs = weight.shape[0] if transposed else weight.shape[1] * groups
    every = torch.ones(inputs, dtype=torch.float64)
    every[first : first + len(factors)] = factors
    if transposed:
        layer.weight = _scaled(weight, every.reshape(-1, 1, 1, 1))
        return
    # Rows of one group read the channels of that group.
    of_rows = every.reshape(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1)
    shape = (*weight.shape[:2], *[1] * (weight.dim() - 2))
    layer.weight = _scaled(weight, of_rows.reshape(shape))


def _scaled(parameter: Tensor, factors: Tensor) -> nn.Parameter:
    """A new parameter: another layer may share the old one."""
    scaled = (parameter.detach().double() * factors).to(parameter.dtype)
    return nn.Parameter(scaled, requires_grad=False)
