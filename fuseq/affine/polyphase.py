r"""`PolyphaseForm`: values finer than the root, as pixel shuffles of a `LinForm`.

An upsampled value v has r positions for each position m of a coarse map w, one *phase* p each:

    v[o, r*m + p] = w[(o, p), m],        that is        v = pixel_shuffle_r(w) without its last rows

(two axes, treated alike; `cut` rows are dropped). Everything that is affine stays so:

- nearest upsampling repeats each channel of w once a phase;
- a transposed convolution of stride r, padding p and dilation d, the sum of W[t] x[(j + p - d*t)/r]
  over the t that divide, is a convolution with `r*r` phases: tap `(phase + p - d*t) / r`;
- a convolution of stride s reads, for output phase p', fine position `s*p' + q`: coarse tap
  `floor((s*p' + q) / r)`, phase `(s*p' + q) mod r`. With g = gcd(r, s) the result has r/g phases
  and coarse stride s/g; one of the two must be 1.

So one wider convolution on the coarse map computes all phases, and the rules of `LinForm` judge it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from fuseq.affine.axis import IDENTITY, Axis
from fuseq.affine.form import LinForm
from fuseq.affine.kernel import Axes
from fuseq.affine.refusal import RefusedError

Pair: TypeAlias = tuple[int, int]
Spread: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class PolyphaseForm:
    """A value finer than the root.

    Attributes:
        coarse: the phases as channels, in the order of `pixel_shuffle`: channel, row, column.
        phases: fine rows and columns for each coarse one.
        cut: rows and columns dropped after the shuffle; less than `phases`.
        spread: for each axis the offsets `t` at which a root position r*m writes positions
            r*m + t, ascending: the taps of a transposed convolution; None if it would be none.
        repeated: the coarse map itself, if all phases are the same; else None.
    """

    coarse: LinForm
    phases: Pair
    cut: Pair = (0, 0)
    spread: Spread | None = None
    repeated: LinForm | None = None

    @property
    def channels(self) -> int:
        """Number of channels of the value."""
        return self.coarse.channels // math.prod(self.phases)

    def shape(self, root: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the value for a shape of the root."""
        batch, _, *sizes = self.coarse.shape(root)
        fine = (r * n - c for r, n, c in zip(self.phases, sizes, self.cut, strict=True))
        return (batch, self.channels, *fine)

    def require_exact(self) -> None:
        """Refuse a form that is not its value everywhere: ring, border-bias."""
        self.coarse.require_exact()

    def scaled(self, scale: Tensor | float) -> PolyphaseForm:
        """`scale * v`, with a number or one factor a channel."""
        return replace(
            self,
            coarse=self.coarse.scaled(self._each_phase(scale)),
            repeated=self.repeated and self.repeated.scaled(scale),
        )

    def shifted(self, shift: Tensor | float) -> PolyphaseForm:
        """`v + shift`, with a number or one term a channel."""
        return replace(
            self,
            coarse=self.coarse.shifted(self._each_phase(shift)),
            repeated=self.repeated and self.repeated.shifted(shift),
        )

    def channels_taken(self, index: Tensor) -> PolyphaseForm:
        """Some channels of the value, by int64 index."""
        own = torch.arange(self.coarse.channels).view(self.channels, -1)
        return replace(
            self,
            coarse=self.coarse.channels_taken(own[index].flatten()),
            repeated=self.repeated and self.repeated.channels_taken(index),
        )

    def plus(self, other: Form) -> PolyphaseForm:
        """`v + w`.

        Raises:
            RefusedError: layout, stride-mismatch, size-mismatch.
        """
        forms = self._alike((self, other))
        a, b = forms
        return replace(
            self,
            coarse=a.coarse.plus(b.coarse),
            spread=_united(forms),
            repeated=a.repeated and b.repeated and a.repeated.plus(b.repeated),
        )

    @staticmethod
    def concatenated(forms: Sequence[Form]) -> PolyphaseForm:
        """Channels of several forms, in order.

        Raises:
            RefusedError: stride-mismatch, size-mismatch.
        """
        alike = PolyphaseForm._alike(forms)
        repeated = [form.repeated for form in alike if form.repeated]
        return replace(
            alike[0],
            coarse=LinForm.concatenated([form.coarse for form in alike]),
            spread=_united(alike),
            repeated=LinForm.concatenated(repeated) if len(repeated) == len(alike) else None,
        )

    def convolved(self, weight: Tensor, bias: Tensor | None, groups: int, axes: Axes) -> Form:
        """Composition with a convolution that zero-pads; arguments as of `LinForm.convolved`.

        Raises:
            RefusedError: stride-mismatch, ring, border-bias.
        """
        windows = tuple(map(_coarse_window, axes, self.phases, self.cut))
        phases = windows[0].phases, windows[1].phases
        wide = _phase_weight(weight, windows, self.phases)
        shift = None if bias is None else bias.repeat_interleave(math.prod(phases))
        coarse = self.coarse.convolved(wide, shift, groups, (windows[0].axis, windows[1].axis))
        if phases == (1, 1):
            return coarse
        spread = None
        if self.spread and all(axis.stride == 1 for axis in axes):
            vertical, horizontal = (
                tuple(sorted({t - q for t in taps for q in axis.taps}))
                for taps, axis in zip(self.spread, axes, strict=True)
            )
            spread = vertical, horizontal
        pointwise = all(axis == IDENTITY for axis in axes)
        return PolyphaseForm(
            coarse,
            phases,
            (windows[0].cut, windows[1].cut),
            spread,
            self.repeated.convolved(weight, bias, groups, axes)
            if pointwise and self.repeated
            else None,
        )

    def padded(self, axes: Axes, value: Tensor | float, *, framed: bool = False) -> Form:
        """Padding with a constant, cropping or striding; `framed` is of no use here.

        Raises:
            RefusedError: stride-mismatch, ring, border-bias.
        """
        constant = torch.as_tensor(value, dtype=torch.float64).expand(self.channels)
        identity = torch.ones(self.channels, 1, 1, 1, dtype=torch.float64)
        moved = self.shifted(-constant).convolved(identity, None, self.channels, axes)
        return moved.shifted(constant)

    def overwritten(
        self, dim: int, start: int, end: int | None, value: Tensor, rounding: float
    ) -> PolyphaseForm:
        """Never: the border of an upsampled map is not tracked."""
        raise RefusedError(
            "layout", "a constant is written into an upsampled map", "write it before upsampling"
        )

    def _each_phase(self, numbers: Tensor | float) -> Tensor:
        each = torch.as_tensor(numbers, dtype=torch.float64).expand(self.channels)
        return each.repeat_interleave(math.prod(self.phases))

    @staticmethod
    def _alike(forms: Sequence[Form]) -> list[PolyphaseForm]:
        fine = [form for form in forms if isinstance(form, PolyphaseForm)]
        if len(fine) < len(forms) or len({form.phases for form in fine}) > 1:
            raise RefusedError(
                "stride-mismatch",
                "branches that were upsampled by different factors meet",
                "upsample the branches alike",
            )
        if len({form.cut for form in fine}) > 1:
            raise RefusedError(
                "size-mismatch",
                "upsampled branches differ in size",
                "give transposed convolutions the same output size",
            )
        return fine


Form: TypeAlias = LinForm | PolyphaseForm


def shuffled(form: Form, phases: Pair) -> PolyphaseForm:
    """Pixel shuffle of a form's channels, by rows and columns."""
    if isinstance(form, LinForm):
        return PolyphaseForm(form, phases)
    rows, columns = form.phases
    own = torch.arange(form.coarse.channels)
    order = own.view(-1, *phases, rows, columns).permute(0, 3, 1, 4, 2).flatten()
    return PolyphaseForm(
        form.coarse.channels_taken(order),
        (rows * phases[0], columns * phases[1]),
        (form.cut[0] * phases[0], form.cut[1] * phases[1]),
    )


def upsampled(form: Form, factors: Pair) -> PolyphaseForm:
    """Nearest upsampling by whole factors."""
    each = torch.arange(form.channels).repeat_interleave(math.prod(factors))
    fine = shuffled(form.channels_taken(each), factors)
    spread = _wider(form, factors, (range(factors[0]), range(factors[1])))
    return replace(fine, spread=spread, repeated=form if isinstance(form, LinForm) else None)


def transposed(
    form: Form,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    *,
    stride: Pair,
    padding: Pair,
    output_padding: Pair,
    dilation: Pair,
) -> Form:
    """Composition with a transposed convolution.

    Args:
        form: of its operand.
        weight: `(channels, out channels / groups, taps, taps)`, any floating dtype.
        bias: `(out channels,)` or None.
        groups: of the transposed convolution.
        stride: rows, columns; so are the others.
        padding: what is cropped on both sides.
        output_padding: what is added after the map.
        dilation: distance of kernel entries.

    Raises:
        RefusedError: ring, border-bias.
    """
    axes, cuts, places = [], [], []
    for index in (0, 1):
        r, p, d, k = stride[index], padding[index], dilation[index], weight.shape[2 + index]
        place = {  # (phase, kernel entry) -> coarse tap
            (phase, t): (phase + p - d * t) // r
            for phase in range(r)
            for t in range(k)
            if (phase + p - d * t) % r == 0
        }
        longer = -r - 2 * p + d * (k - 1) + output_padding[index] + 1
        blocks = -(-longer // r)
        axes.append(Axis(1, blocks - 1, tuple(sorted(set(place.values())))))
        cuts.append(r * blocks - longer)
        places.append(place)
    outputs, area = groups * weight.shape[1], stride[0] * stride[1]
    parts = weight.double().view(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    wide = parts.new_zeros(outputs, *stride, parts.shape[1], len(axes[0].taps), len(axes[1].taps))
    for (row, u), vertical in places[0].items():
        for (column, v), horizontal in places[1].items():
            tap = axes[0].taps.index(vertical), axes[1].taps.index(horizontal)
            wide[:, row, column, :, tap[0], tap[1]] = parts[:, :, u, v]
    shift = None if bias is None else bias.repeat_interleave(area)
    convolved = form.convolved(wide.flatten(0, 2), shift, groups, (axes[0], axes[1]))
    if stride == (1, 1):
        return convolved
    fine = shuffled(convolved, stride)
    cut = fine.cut[0] + cuts[0], fine.cut[1] + cuts[1]
    fine = replace(fine, cut=cut)
    rows, columns = (
        [dilation[i] * t - padding[i] for t in range(weight.shape[2 + i])] for i in (0, 1)
    )
    return replace(fine, spread=_wider(form, stride, (rows, columns)))


@dataclass(frozen=True)
class _Window:
    """A fine window on the coarse map.

    Attributes:
        axis: of the coarse window.
        phases: of the result.
        cut: positions to drop from the result.
        reads: for each output phase and each fine tap: index of the coarse tap, input phase.
    """

    axis: Axis
    phases: int
    cut: int
    reads: tuple[tuple[Pair, ...], ...]


def _coarse_window(axis: Axis, phases: int, cut: int) -> _Window:
    if cut and axis.reads_after() > 0:
        raise RefusedError(
            "ring",
            "positions after an upsampled map that ends within a step are read as zeros",
            "choose output_padding so that the map is a multiple of the stride",
        )
    common = math.gcd(phases, axis.stride)
    new, step = phases // common, axis.stride // common
    if new > 1 and step > 1:
        raise RefusedError(
            "stride-mismatch",
            f"a map upsampled by {phases} is read with stride {axis.stride}",
            "use a stride that divides the factor",
        )
    fine = [[axis.stride * phase + tap for tap in axis.taps] for phase in range(new)]
    taps = sorted({position // phases for row in fine for position in row})
    if step == 1:  # size new*n + longer for n coarse positions
        longer = (axis.extent - cut) // axis.stride + 1
        blocks = -(-longer // new)
        extent, dropped = blocks - 1, new * blocks - longer
    else:
        extent, dropped = (axis.extent - cut) // phases, 0
    reads = tuple(
        tuple((taps.index(position // phases), position % phases) for position in row)
        for row in fine
    )
    return _Window(Axis(step, extent, tuple(taps)), new, dropped, reads)


def _phase_weight(weight: Tensor, windows: Sequence[_Window], phases: Pair) -> Tensor:
    """Weights of the coarse convolution: `(out, phase, phase) x (in, phase, phase) x taps`."""
    vertical, horizontal = windows
    outputs, inputs = weight.shape[:2]
    taps = len(vertical.axis.taps), len(horizontal.axis.taps)
    new = vertical.phases, horizontal.phases
    wide = torch.zeros(outputs, *new, inputs, *phases, *taps, dtype=torch.float64)
    for row, reads in enumerate(vertical.reads):
        for u, (tap_v, phase_v) in enumerate(reads):
            for column, others in enumerate(horizontal.reads):
                for v, (tap_h, phase_h) in enumerate(others):
                    wide[:, row, column, :, phase_v, phase_h, tap_v, tap_h] += weight[:, :, u, v]
    return wide.reshape(outputs * math.prod(new), inputs * math.prod(phases), *taps)


def _wider(form: Form, stride: Pair, written: tuple[Iterable[int], Iterable[int]]) -> Spread | None:
    """Spread after each position of a form wrote some positions of a finer map."""
    if isinstance(form, PolyphaseForm):
        before = form.spread
    else:
        pointwise = all(axis == IDENTITY for axis in form.axes)
        before = ((0,), (0,)) if pointwise else None
    if before is None:
        return None
    vertical, horizontal = (
        tuple(sorted({r * t + u for t in taps for u in new}))
        for taps, r, new in zip(before, stride, map(list, written), strict=True)
    )
    return vertical, horizontal


def _united(
    forms: Sequence[PolyphaseForm],
) -> Spread | None:
    if any(form.spread is None for form in forms):
        return None
    vertical, horizontal = (
        tuple(sorted({t for form in forms if form.spread for t in form.spread[axis]}))
        for axis in (0, 1)
    )
    return vertical, horizontal
