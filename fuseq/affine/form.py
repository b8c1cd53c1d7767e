r"""`LinForm`: a value written as one convolution of an earlier value, the root.

Let x be the root, zero outside its map. A value v is affine and translation-equivariant in x if,
per output channel o and position i (two axes, treated alike),

    v[o, i] = sum over c, r of  K[o, c, r] * x[c, s*i + r]  +  bias[o],
    i = 0 .. floor((H + a) / s)

with stride s, extent a, and taps r: a finite set of offsets for each axis (`axis` has the algebra
of these three). Batch norm, scale, sum, difference, concatenation and channel slices act on K and
bias alone; convolution, average pooling, padding, cropping and striding compose.

Composition reads v outside its map as zero. Two rules say when that is what the formula gives:

*Ring rule.* Position -1 of v reads x at r - s and must read none of it: max r <= s - 1. Position
`floor((H + a)/s) + 1` must read none for any H: min r >= -a - 1. Further positions are then safe.

*Bias rule.* The formula gives `bias` outside the map, so whatever surrounds the map must equal it.

A failed rule spoils the positions that read outside: the form keeps them as its `margin`, and is
exact once a crop has removed it.

A form is cheap to make: its kernel is computed when it is asked for, in float64. Structure (taps,
which input channels an output channel can read) and biases are known at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from fuseq.affine.axis import IDENTITY, united
from fuseq.affine.border import Border, Margin, border_bias, same
from fuseq.affine.kernel import Axes, gathered, group_start, shifted, spread
from fuseq.affine.refusal import RefusedError

Kernel = Callable[[], Tensor]


PADDING_RULES = frozenset({"ring rule", "bias rule"})


@dataclass(frozen=True)
class LinForm:
    """A value as one convolution of a root.

    Attributes:
        in_channels: of the root.
        axes: vertical, horizontal.
        low: int64 `(channels,)`, first root channel that each channel reads.
        high: int64 `(channels,)`, one past the last.
        bias: float64 `(channels,)`.
        kernel: gives float64 `(channels, max(high - low), taps, taps)`; entry b of channel o
            belongs to root channel `low[o] + b`, and is zero from `high[o]` on.
        border: constant frame that still has to become the bias, or None.
        margin: positions along the sides where the formula is wrong, or None.
        size: root size the form is restricted to, or None if it holds for every size.
        tokens: channels are the last dimension, of any rank, and there is no map.
        rules: exactness rules that were needed, by name.
        rounding: relative rounding of constants that were taken as equal to a bias.
    """

    in_channels: int
    axes: Axes
    low: Tensor
    high: Tensor
    bias: Tensor
    kernel: Kernel
    border: Border | None = None
    margin: Margin | None = None
    size: tuple[int, int] | None = None
    tokens: bool = False
    rules: frozenset[str] = frozenset()
    rounding: float = 0.0

    @staticmethod
    def root(
        channels: int, size: tuple[int, int] | None = None, *, tokens: bool = False
    ) -> LinForm:
        """The identity on a root.

        Args:
            channels: of the root.
            size: restrict everything built on the root to this height and width.
            tokens: channels are the last dimension.
        """
        channel = torch.arange(channels)
        return LinForm(
            in_channels=channels,
            axes=(IDENTITY, IDENTITY),
            low=channel,
            high=channel + 1,
            bias=torch.zeros(channels, dtype=torch.float64),
            kernel=lambda: torch.ones(channels, 1, 1, 1, dtype=torch.float64),
            size=size,
            tokens=tokens,
        )

    @property
    def channels(self) -> int:
        """Number of channels of the value."""
        return len(self.bias)

    def shape(self, root: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the value for a shape of the root."""
        if self.tokens:
            return (*root[:-1], self.channels)
        rows, columns = (axis.size(n) for axis, n in zip(self.axes, root[2:], strict=True))
        return (root[0], self.channels, rows, columns)

    def groups(self) -> int:
        """Largest group count of a convolution that can hold this form."""
        for groups in range(math.gcd(self.in_channels, self.channels), 1, -1):
            if self.in_channels % groups or self.channels % groups:
                continue
            first = group_start(self.in_channels, self.channels, groups)
            if ((self.low >= first) & (self.high <= first + self.in_channels // groups)).all():
                return groups
        return 1

    def dense(self, first: Tensor, width: int) -> Tensor:
        """Kernel in another channel layout.

        Args:
            first: int64 `(channels,)`, root channel of each output channel's first entry.
            width: number of root channels per output channel.

        Returns:
            float64 `(channels, width, taps, taps)`.
        """
        return shifted(self.kernel(), self.low, first, width)

    # --- channels one by one ---

    def scaled(self, scale: Tensor | float) -> LinForm:
        """`scale * v`, with a number or one factor a channel."""
        self.require_plain()
        factor = torch.as_tensor(scale, dtype=torch.float64).expand(self.channels)
        kernel = self.kernel
        return replace(
            self,
            bias=self.bias * factor,
            kernel=cache(lambda: kernel() * factor.view(-1, 1, 1, 1)),
        )

    def shifted(self, shift: Tensor | float) -> LinForm:
        """`v + shift`, with a number or one term a channel."""
        self.require_plain()
        return replace(self, bias=self.bias + torch.as_tensor(shift, dtype=torch.float64))

    def channels_taken(self, index: Tensor) -> LinForm:
        """Some channels of the value, by int64 index."""
        self.require_plain()
        kernel = self.kernel
        low, high = self.low[index], self.high[index]
        width = int((high - low).max())
        return replace(
            self,
            low=low,
            high=high,
            bias=self.bias[index],
            kernel=cache(lambda: kernel()[index, :width]),
        )

    # --- several forms of one root ---

    def plus(self, other: LinForm) -> LinForm:
        """`v + w`.

        Raises:
            RefusedError: layout, stride-mismatch, size-mismatch.
        """
        if self.channels != other.channels:
            raise RefusedError(
                "layout", f"{self.channels} channels meet {other.channels}", "repeat the channels"
            )
        axes, rules = _common_axes((self, other))
        low, high = torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)
        width = int((high - low).max())
        return replace(
            self,
            axes=axes,
            low=low,
            high=high,
            bias=self.bias + other.bias,
            kernel=cache(
                lambda: (
                    spread(self.dense(low, width), self.axes, axes)
                    + spread(other.dense(low, width), other.axes, axes)
                )
            ),
            margin=Margin.widest((self.margin, other.margin)),
            rules=rules,
            rounding=max(self.rounding, other.rounding),
        )

    @staticmethod
    def concatenated(forms: Sequence[LinForm]) -> LinForm:
        """Channels of several forms, in order.

        Raises:
            RefusedError: stride-mismatch, size-mismatch.
        """
        axes, rules = _common_axes(forms)
        low, high = torch.cat([f.low for f in forms]), torch.cat([f.high for f in forms])
        width = int((high - low).max())
        return replace(
            forms[0],
            axes=axes,
            low=low,
            high=high,
            bias=torch.cat([f.bias for f in forms]),
            kernel=cache(
                lambda: torch.cat([spread(f.dense(f.low, width), f.axes, axes) for f in forms])
            ),
            margin=Margin.widest(f.margin for f in forms),
            rules=rules,
            rounding=max(f.rounding for f in forms),
        )

    # --- space ---

    def convolved(self, weight: Tensor, bias: Tensor | None, groups: int, axes: Axes) -> LinForm:
        """Composition with a convolution that zero-pads.

        Args:
            weight: `(out channels, channels / groups, taps, taps)`, any floating dtype.
            bias: `(out channels,)` or None.
            groups: of the convolution.
            axes: of the convolution, with as many taps as the weight.

        Raises:
            RefusedError: border-bias if the map has an unfinished border.
        """
        self.require_plain()
        outputs = len(weight)
        low, high, first = (
            t.repeat_interleave(n)
            for t, n in (
                (self.low.view(groups, -1).amin(1), outputs // groups),
                (self.high.view(groups, -1).amax(1), outputs // groups),
                (self.low.view(groups, -1).amin(1), self.channels // groups),
            )
        )
        shift = torch.zeros(outputs, dtype=torch.float64) if bias is None else bias.double()
        if self.bias.any():
            sums = weight.double().sum((2, 3)).view(groups, outputs // groups, -1)
            shift = shift + (sums @ self.bias.view(groups, -1, 1)).flatten()
        joint = (self.axes[0].then(axes[0]), self.axes[1].then(axes[1]))
        width = int((high - low).max())

        def kernel() -> Tensor:
            if self._is_channelwise():
                scale = self.kernel().view(groups, 1, -1, 1, 1)
                parts = weight.double().view(groups, outputs // groups, *weight.shape[1:])
                return (parts * scale).flatten(0, 1)
            inner = self.dense(first, width).view(groups, self.channels // groups, -1)
            outer = weight.double().view(groups, outputs // groups, self.channels // groups, -1)
            product = outer.transpose(2, 3).flatten(1, 2) @ inner
            sizes = [len(axis.taps) for axis in (*axes, *self.axes)]
            split = product.view(outputs, *sizes[:2], width, *sizes[2:])
            return gathered(split, axes, self.axes, joint)

        return replace(
            self,
            axes=joint,
            low=low,
            high=high,
            bias=shift,
            kernel=cache(kernel),
            margin=self._margin(axes, torch.zeros_like(self.bias)),
            rules=self._rules(axes),
        )

    def padded(self, axes: Axes, value: Tensor | float, *, framed: bool = False) -> LinForm:
        """Padding with a constant, cropping or striding.

        Args:
            axes: with one tap each.
            value: what is padded with; a number or one a channel.
            framed: a border other than the bias may follow, to be overwritten.

        Raises:
            RefusedError: border-bias if the map has an unfinished border.
        """
        self.require_plain()
        constant = torch.as_tensor(value, dtype=torch.float64).expand(self.channels)
        border = None
        if framed and self._reads_outside(axes) and not same(self.bias, constant, 0.0):
            border = Border.around(self.bias, constant, axes)
        return replace(
            self,
            axes=(self.axes[0].then(axes[0]), self.axes[1].then(axes[1])),
            border=border,
            margin=self._margin(axes, self.bias if border else constant),
            rules=self._rules(axes),
        )

    def overwritten(
        self, dim: int, start: int, end: int | None, value: Tensor, rounding: float
    ) -> LinForm:
        """A constant written over whole rows (dim 2) or columns (dim 3) of the frame.

        Args:
            dim: 2 or 3.
            start: first row; negative counts from the end.
            end: one past the last row, or None for the end.
            value: float64 `(channels,)`.
            rounding: relative rounding of the value.

        Raises:
            RefusedError: layout if anything but one side of the frame is written.
        """
        if self.border is None:
            raise RefusedError("layout", "a constant is written over a map that was not padded")
        border = self.border.overwritten(dim, start, end, value, rounding)
        if not same(self.bias, border.values, border.rounding):
            return replace(self, border=border)
        return replace(
            self,
            border=None,
            rules=self.rules | {"bias rule"},
            rounding=max(self.rounding, border.rounding),
        )

    def _reach(self, outer: Axes) -> tuple[int, ...]:
        """How far `outer` reads outside the map: top, bottom, left, right; negative inside."""
        roots = self.size or (None, None)
        sizes = [n and axis.size(n) for axis, n in zip(self.axes, roots, strict=True)]
        return tuple(
            reach
            for window, size in zip(outer, sizes, strict=True)
            for reach in (window.reads_before(), window.reads_after(size))
        )

    def _reads_outside(self, outer: Axes) -> bool:
        return any(reach > 0 for reach in self._reach(outer))

    def _margin(self, outer: Axes, constant: Tensor) -> Margin | None:
        """Margin after `outer` was applied to the map, padded with a constant."""
        reaches = self._reach(outer)
        old = self.margin.widths if self.margin else (0,) * 4
        error = self.margin.error if self.margin else None
        biased = None if same(self.bias, constant, 0.0) else border_bias(self.bias, constant)
        widths = []
        for side, (reach, width) in enumerate(zip(reaches, old, strict=True)):
            failed = (self._ring(side) or biased) if reach > 0 else None
            error = error or failed
            spoiled = width or failed
            widths.append(max(0, -(-(width + reach) // outer[side // 2].stride)) if spoiled else 0)
        return Margin(tuple(widths), error) if error and any(widths) else None

    def _ring(self, side: int) -> RefusedError | None:
        """Why the ring rule fails on a side: 0 top, 1 bottom, 2 left, 3 right."""
        axis, size = self.axes[side // 2], self.size and self.size[side // 2]
        overlap = axis.ring_after(size) if side % 2 else axis.ring_before()
        if overlap <= 0:
            return None
        return RefusedError(
            "ring",
            f"positions {'after' if side % 2 else 'before'} the padded intermediate map would "
            f"still read {overlap} rows or columns of the input instead of zeros",
            "pad the input once instead of the intermediate value",
        )

    def _is_channelwise(self) -> bool:
        """Whether each channel reads one position of the root channel of the same number."""
        one_tap = all(len(axis.taps) == 1 for axis in self.axes)
        own = torch.arange(self.channels)
        return one_tap and torch.equal(self.low, own) and torch.equal(self.high, own + 1)

    def _rules(self, outer: Axes) -> frozenset[str]:
        """Rules so far, with the ring and bias rules if an intermediate map is padded."""
        trivial = self._is_channelwise() and not self.bias.any()
        needed = self._reads_outside(outer) and not trivial
        return self.rules | (PADDING_RULES if needed else frozenset())

    def require_plain(self) -> None:
        """Refuse a border that is still to be overwritten: border-bias."""
        if self.border:
            raise border_bias(self.bias, self.border.values)

    def require_exact(self) -> None:
        """Refuse a form that is not its value everywhere: ring, border-bias."""
        self.require_plain()
        if self.margin:
            raise self.margin.error


def _common_axes(forms: Sequence[LinForm]) -> tuple[Axes, frozenset[str]]:
    """Axes with the union of all taps, where strides and sizes agree."""
    for form in forms:
        form.require_plain()
    vertical, horizontal = zip(*(form.axes for form in forms), strict=True)
    rows, columns = forms[0].size or (None, None)
    rules = frozenset[str]().union(*(form.rules for form in forms))
    if any(len({axis.extent for axis in parts}) > 1 for parts in (vertical, horizontal)):
        rules |= {"captured size"}
    return (united(vertical, rows), united(horizontal, columns)), rules
