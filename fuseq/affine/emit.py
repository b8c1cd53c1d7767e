"""From a form to the convolution that holds it.

Exact padding follows from taps and extent: with kernel size k and dilation d, the map is padded
by p = -(first tap) before and q = a + 1 + d*(k-1) - p after. Where p and q differ or crop, either
a separate `F.pad` does it, or zeros widen the kernel until they are equal; price decides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fuseq.affine.axis import Axis
from fuseq.affine.form import LinForm
from fuseq.affine.kernel import group_start


@dataclass(frozen=True)
class AxisPlan:
    """One axis of a convolution.

    Attributes:
        first: offset of the first kernel entry.
        kernel: size.
        dilation: distance of kernel entries.
        padding: of the convolution, on both sides.
        frame: padding (negative: cropping) by a separate op before it: before, after.
    """

    first: int
    kernel: int
    dilation: int
    padding: int
    frame: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """Structure of a convolution that computes a form, after an optional `F.pad` of the root.

    Attributes:
        form: what is computed.
        groups: of the convolution.
        vertical: height axis.
        horizontal: width axis.
    """

    form: LinForm
    groups: int
    vertical: AxisPlan
    horizontal: AxisPlan

    @property
    def frame(self) -> tuple[int, int, int, int]:
        """Amounts for `F.pad` before the convolution: left, right, top, bottom."""
        return (*self.horizontal.frame, *self.vertical.frame)

    @property
    def weight_size(self) -> int:
        """Number of weights."""
        form = self.form
        area = self.vertical.kernel * self.horizontal.kernel
        return form.channels * form.in_channels // self.groups * area

    def build(self) -> nn.Conv2d:
        """The convolution, with float64 weights; this is where kernels are computed."""
        form, axes = self.form, (self.vertical, self.horizontal)
        conv = nn.Conv2d(
            form.in_channels,
            form.channels,
            (axes[0].kernel, axes[1].kernel),
            stride=(form.axes[0].stride, form.axes[1].stride),
            padding=(axes[0].padding, axes[1].padding),
            dilation=(axes[0].dilation, axes[1].dilation),
            groups=self.groups,
            bias=bool(form.bias.any()),
            device="meta",
        )
        conv.weight = nn.Parameter(self._weight(), requires_grad=False)
        if conv.bias is not None:
            conv.bias = nn.Parameter(form.bias.clone(), requires_grad=False)
        return conv.eval()

    def _weight(self) -> Tensor:
        form = self.form
        first = group_start(form.in_channels, form.channels, self.groups)
        weight = form.dense(first, form.in_channels // self.groups)
        for dim, (plan, axis) in enumerate(
            zip((self.vertical, self.horizontal), form.axes, strict=True), start=2
        ):
            if plan.kernel == len(axis.taps):
                continue
            entries = torch.tensor([(tap - plan.first) // plan.dilation for tap in axis.taps])
            shape = [*weight.shape[:dim], plan.kernel, *weight.shape[dim + 1 :]]
            weight = weight.new_zeros(shape).index_copy_(dim, entries, weight)
        return weight


def plans(form: LinForm) -> Iterator[Plan]:
    """Every way to compute a form with one convolution and at most one `F.pad`."""
    groups = form.groups()
    for vertical, horizontal in itertools.product(*(list(_axis_plans(a)) for a in form.axes)):
        yield Plan(form, groups, vertical, horizontal)


def _axis_plans(axis: Axis) -> Iterator[AxisPlan]:
    taps = axis.taps
    dilation = math.gcd(*(tap - taps[0] for tap in taps)) or 1
    span = taps[-1] - taps[0]
    before = -taps[0]
    after = axis.extent + 1 + span - before
    kernel = span // dilation + 1
    if before == after >= 0:
        yield AxisPlan(taps[0], kernel, dilation, before, (0, 0))
        return
    yield AxisPlan(taps[0], kernel, dilation, 0, (before, after))
    if dilation == 1 and min(before, after) >= 0:
        widest = max(before, after)
        kernel += 2 * widest - before - after
        yield AxisPlan(-widest, kernel, 1, widest, (0, 0))
