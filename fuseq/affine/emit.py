"""From a form to the layer that computes it, and the ops around that layer.

A plan is one layer with weights, after at most one `F.pad` of the root, before whatever puts
phases in place. Exact padding of a convolution follows from taps and extent: with kernel size k
and dilation d, the map is padded by p = -(first tap) before and q = a + 1 + d*(k-1) - p after.
Where p and q differ or crop, either a separate `F.pad` does it, or zeros widen the kernel until
they are equal; price decides.

An upsampled value is a wide convolution and a pixel shuffle; a convolution and a nearest resize
where all phases are the same; or, where the network has one anyway, a transposed convolution.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fuseq.affine.axis import Axis
from fuseq.affine.form import LinForm
from fuseq.affine.kernel import group_start
from fuseq.affine.polyphase import Form, PolyphaseForm, Spread
from fuseq.program import Program

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """A function of one tensor, with attributes.

    Attributes:
        function: of the canonical vocabulary.
        attributes: all of them.
        result: shape it gives, from the shape it gets.
    """

    function: Callable[..., Tensor]
    attributes: dict[str, Any]
    result: Callable[[Shape], Shape]

    def __call__(self, x: Tensor) -> Tensor:
        """Run it."""
        return self.function(x, **self.attributes)


@dataclass(frozen=True)
class Plan:
    """How to compute a form.

    Attributes:
        form: what the layer computes; for upsampled values the coarse map.
        before: padding of the root, if any.
        after: what follows the layer.
        build: gives the layer with float64 weights; this is where kernels are computed.
        work: multiply-accumulates of the layer and the shape of its result, from the root's shape.
    """

    form: LinForm
    before: tuple[Call, ...]
    after: tuple[Call, ...]
    build: Callable[[], nn.Module]
    work: Callable[[Shape], tuple[int, Shape]]

    def macs(self, root: Shape) -> int:
        """Multiply-accumulates for a shape of the root."""
        return self.work(root)[0]

    def elements(self, root: Shape) -> int:
        """Elements that are read and written, for a shape of the root."""
        total, shape = 0, root
        for call in self.before:
            total += math.prod(shape) + math.prod(shape := call.result(shape))
        total += math.prod(shape) + math.prod(shape := self.work(root)[1])
        for call in self.after:
            total += math.prod(shape) + math.prod(shape := call.result(shape))
        return total

    @property
    def operations(self) -> int:
        """Number of nodes."""
        return len(self.before) + 1 + len(self.after)

    def fits(self, root: Shape) -> bool:
        """Whether a shape of the root leaves something of the map: torch crops, then it pads."""
        crops = [n for call in self.before for n in call.attributes["pad"]]
        sides = zip(reversed(root), zip(crops[::2], crops[1::2], strict=True), strict=False)
        return all(size + min(a, 0) + min(b, 0) > 0 for size, (a, b) in sides)

    def run(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The value, given the built layer and the root."""
        for call in self.before:
            x = call(x)
        x = layer(x)
        for call in self.after:
            x = call(x)
        return x

    def place(
        self, program: Program, root: fx.Node, exit: fx.Node, name: str, layer: nn.Module
    ) -> fx.Node:
        """Put the plan into a graph just before `exit`; returns the node of the layer.

        Args:
            program: edited.
            root: node that is read.
            exit: node whose readers then read the plan's value instead.
            name: wished path of the layer.
            layer: from `build`, in the program's dtype.
        """
        last, shape = root, program.shape(root)
        for call in self.before:
            last, shape = _called(program, call, last, shape, exit)
        placed = last = program.insert_module(name, layer, exit, last)
        shape = self.work(program.shape(root))[1]
        placed.meta["shape"] = shape
        for call in self.after:
            last, shape = _called(program, call, last, shape, exit)
        exit.replace_all_uses_with(last)
        return placed


def _called(
    program: Program, call: Call, operand: fx.Node, shape: Shape, exit: fx.Node
) -> tuple[fx.Node, Shape]:
    with program.graph.inserting_before(exit):
        node = program.graph.call_function(call.function, (operand,), call.attributes)
    node.meta = {**exit.meta, "shape": call.result(shape), "dtype": operand.meta["dtype"]}
    return node, node.meta["shape"]


def plans(form: Form, *, transpose: bool) -> Iterator[Plan]:
    """Every way to compute a form with one layer.

    Args:
        form: without border or margin.
        transpose: whether a transposed convolution may be the layer.
    """
    if isinstance(form, PolyphaseForm):
        yield from _upsampling_plans(form, transpose)
    elif form.tokens:
        yield _linear_plan(form)
    else:
        yield from _convolution_plans(form)


def _linear_plan(form: LinForm) -> Plan:
    size = form.in_channels * form.channels

    def build() -> nn.Module:
        layer = nn.Linear(form.in_channels, form.channels, bool(form.bias.any()), device="meta")
        weight = form.dense(torch.zeros(form.channels, dtype=torch.int64), form.in_channels)
        return _filled(layer, weight[:, :, 0, 0], form.bias)

    def work(root: Shape) -> tuple[int, Shape]:
        return math.prod(root[:-1]) * size, form.shape(root)

    return Plan(form, (), (), build, work)


def _upsampling_plans(form: PolyphaseForm, transpose: bool) -> Iterator[Plan]:
    crop = (_pad((0, -form.cut[1], 0, -form.cut[0])),) if any(form.cut) else ()
    if form.repeated:
        yield from _convolution_plans(form.repeated, (_resize(form.phases), *crop))
    elif form.phases[0] == form.phases[1]:
        yield from _convolution_plans(form.coarse, (_shuffle(form.phases[0]), *crop))
    dense = {axis.stride for axis in form.coarse.axes} == {1}
    bias = form.coarse.bias.view(form.channels, -1)
    if transpose and form.spread and dense and bool((bias == bias[:, :1]).all()):
        yield _transposed_plan(form, form.spread)


def _transposed_plan(form: PolyphaseForm, spread: Spread) -> Plan:
    """With padding p, kernel entry t writes position r*m + t - p; zeros widen the kernel.

    `size = r*(H - 1) - 2*p + k + output_padding` has to be `r*(H + a + 1) - cut`.
    """
    sides = []
    for axis, r, cut, taps in zip(form.coarse.axes, form.phases, form.cut, spread, strict=True):
        padding = max(0, -taps[0])
        kernel = taps[-1] + padding + 1
        longer = r * (axis.extent + 2) - cut - (kernel - 2 * padding)
        if longer < 0:  # crop both sides more, and begin the kernel with as many zeros
            padding, kernel, longer = padding - longer, kernel - longer, 0
        elif longer >= r:  # end the kernel with zeros
            kernel, longer = kernel + longer, 0
        sides.append((kernel, padding, longer))
    (rows, top, below), (columns, left, beside) = sides
    coarse, (r, c) = form.coarse, form.phases
    inputs, outputs = coarse.in_channels, form.channels
    groups = math.gcd(coarse.groups(), inputs, outputs)
    size = inputs * (outputs // groups) * rows * columns

    def build() -> nn.Module:
        layer = nn.ConvTranspose2d(
            inputs,
            outputs,
            (rows, columns),
            stride=(r, c),
            padding=(top, left),
            output_padding=(below, beside),
            groups=groups,
            bias=bool(coarse.bias.any()),
            device="meta",
        )
        width = inputs // groups
        first = group_start(inputs, coarse.channels, groups)
        dense = coarse.dense(first, width).view(outputs, r, c, width, *map(len, _taps(coarse)))
        weight = dense.new_zeros(groups, outputs // groups, width, rows, columns)
        vertical, horizontal = _taps(coarse)
        for i, j in itertools.product(range(r), range(c)):
            for (u, tap_v), (v, tap_h) in itertools.product(
                enumerate(vertical), enumerate(horizontal)
            ):
                row, column = i - r * tap_v + top, j - c * tap_h + left
                if 0 <= row < rows and 0 <= column < columns:
                    entry = dense[:, i, j, :, u, v].view(groups, outputs // groups, width)
                    weight[..., row, column] = entry
        weight = weight.transpose(1, 2).reshape(inputs, outputs // groups, rows, columns)
        return _filled(layer, weight, coarse.bias.view(outputs, -1)[:, 0])

    def work(root: Shape) -> tuple[int, Shape]:
        return math.prod(root) // inputs * size, form.shape(root)

    return Plan(coarse, (), (), build, work)


def _taps(form: LinForm) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return form.axes[0].taps, form.axes[1].taps


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


def _convolution_plans(form: LinForm, after: tuple[Call, ...] = ()) -> Iterator[Plan]:
    groups = form.groups()
    for vertical, horizontal in itertools.product(*(list(_axis_plans(a)) for a in form.axes)):
        yield _convolution_plan(form, groups, vertical, horizontal, after)


def _convolution_plan(
    form: LinForm, groups: int, vertical: AxisPlan, horizontal: AxisPlan, after: tuple[Call, ...]
) -> Plan:
    sides = (vertical, horizontal)
    frame = (*horizontal.frame, *vertical.frame)
    size = form.channels * form.in_channels // groups * vertical.kernel * horizontal.kernel

    def build() -> nn.Module:
        conv = nn.Conv2d(
            form.in_channels,
            form.channels,
            (vertical.kernel, horizontal.kernel),
            stride=(form.axes[0].stride, form.axes[1].stride),
            padding=(vertical.padding, horizontal.padding),
            dilation=(vertical.dilation, horizontal.dilation),
            groups=groups,
            bias=bool(form.bias.any()),
            device="meta",
        )
        first = group_start(form.in_channels, form.channels, groups)
        weight = form.dense(first, form.in_channels // groups)
        for dim, (side, axis) in enumerate(zip(sides, form.axes, strict=True), start=2):
            if side.kernel == len(axis.taps):
                continue
            entries = torch.tensor([(tap - side.first) // side.dilation for tap in axis.taps])
            shape = [*weight.shape[:dim], side.kernel, *weight.shape[dim + 1 :]]
            weight = weight.new_zeros(shape).index_copy_(dim, entries, weight)
        return _filled(conv, weight, form.bias)

    def work(root: Shape) -> tuple[int, Shape]:
        result = form.shape(root)
        return math.prod(result) // form.channels * size, result

    return Plan(form, _framed(frame), after, build, work)


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


def _filled(layer: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return layer.eval()


def _framed(frame: tuple[int, ...]) -> tuple[Call, ...]:
    """Padding and cropping; torch crops before it pads, which may leave nothing to pad."""
    padding, cropping = tuple(max(n, 0) for n in frame), tuple(min(n, 0) for n in frame)
    both = any(min(side) < 0 < max(side) for side in (frame[:2], frame[2:]))
    return tuple(_pad(part) for part in ((padding, cropping) if both else (frame,)) if any(part))


def _pad(frame: tuple[int, ...]) -> Call:
    left, right, top, bottom = frame
    return Call(
        F.pad,
        {"pad": frame, "mode": "constant", "value": 0.0},
        lambda s: (s[0], s[1], s[2] + top + bottom, s[3] + left + right),
    )


def _shuffle(r: int) -> Call:
    return Call(
        F.pixel_shuffle,
        {"upscale_factor": r},
        lambda s: (s[0], s[1] // (r * r), s[2] * r, s[3] * r),
    )


def _resize(factors: tuple[int, int]) -> Call:
    rows, columns = factors
    attributes = {
        "size": None,
        "scale_factor": (float(rows), float(columns)),
        "mode": "nearest",
        "align_corners": None,
    }
    return Call(F.interpolate, attributes, lambda s: (s[0], s[1], s[2] * rows, s[3] * columns))
