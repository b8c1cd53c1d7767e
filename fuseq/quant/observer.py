"""Observers: what range a value takes, from a stream of batches, in constant memory.

Min-max and moving average keep two numbers. Percentile and MSE keep a histogram whose range
doubles when a batch leaves it: neighbouring bins merge in pairs, so counts stay exact and memory
does not grow with the number of images. The range is less than twice the largest magnitude seen,
so a bin is narrower than `largest / 1024`, and a percentile is at most that far from the exact one,
however the data was split into batches and in whatever order they came.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from fuseq.quant.grid import affine_grid

BINS = 4096
CHUNK = 2**22
"""Elements counted at a time: bounds the memory of the float64 copy."""


class Observer(ABC):
    """Watches one value.

    Attributes:
        seen: number of elements seen so far.
        low: smallest value, as far as the observer minds it.
        high: largest value, likewise.
    """

    low: float
    high: float

    def __init__(self) -> None:
        self.seen = 0

    def update(self, batch: Tensor) -> None:
        """See one more batch (float, any shape)."""
        if batch.numel():
            self.seen += batch.numel()
            self._update(batch.detach().float().reshape(-1))

    @abstractmethod
    def _update(self, values: Tensor) -> None: ...

    @abstractmethod
    def range(self, dtype: str) -> tuple[float, float]:
        """Range `(low, high)` to quantize to `dtype`; only meaningful once `seen > 0`."""


class MinMaxObserver(Observer):
    """The smallest and largest value ever seen."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = float("inf"), float("-inf")

    def _update(self, values: Tensor) -> None:
        low, high = values.aminmax()
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    def range(self, dtype: str) -> tuple[float, float]:
        """Observed extremes."""
        return self.low, self.high


class MovingAverageObserver(Observer):
    """Exponential average of each batch's extremes: `m <- m + c (batch - m)`."""

    def __init__(self, constant: float = 0.01) -> None:
        """Start without a range.

        Args:
            constant: weight `c` of a new batch, in (0, 1].
        """
        super().__init__()
        self.constant = constant
        self.low = self.high = float("nan")

    def _update(self, values: Tensor) -> None:
        low, high = (float(v) for v in values.aminmax())
        if self.low != self.low:
            self.low, self.high = low, high
        self.low += self.constant * (low - self.low)
        self.high += self.constant * (high - self.high)

    def range(self, dtype: str) -> tuple[float, float]:
        """Averaged extremes."""
        return self.low, self.high


class HistogramObserver(Observer):
    """Counts over `[-limit, limit]`, `BINS` bins, exact extremes beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = 0.0
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.low, self.high = float("inf"), float("-inf")

    def _update(self, values: Tensor) -> None:
        low, high = (float(v) for v in values.aminmax())
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(abs(low), abs(high))
        if self.limit == 0.0 < largest:
            self.limit = largest
            self.counts[BINS // 2] = self.seen - values.numel()  # all zero so far
        while largest > self.limit > 0.0:
            self._double()
        if self.limit > 0.0:
            for part in torch.split(values, CHUNK):
                self.counts += torch.histc(part.double() / self.limit, BINS, -1.0, 1.0)

    def _double(self) -> None:
        merged = self.counts.reshape(-1, 2).sum(1)
        self.counts = torch.zeros_like(self.counts)
        self.counts[BINS // 4 : 3 * BINS // 4] = merged
        self.limit *= 2

    def centers(self) -> Tensor:
        """Middle of each bin, float64 `[BINS]`."""
        width = 2 * self.limit / BINS
        return -self.limit + width * (torch.arange(BINS, dtype=torch.float64) + 0.5)


class PercentileObserver(HistogramObserver):
    """The range that leaves out a share of the values at each end."""

    def __init__(self, percentile: float = 99.99) -> None:
        """Start without a range.

        Args:
            percentile: share of values inside the range, in percent; the rest is cut half at each
                end.
        """
        super().__init__()
        self.percentile = percentile

    def range(self, dtype: str) -> tuple[float, float]:
        """Quantiles of the histogram, never wider than the extremes."""
        if self.limit == 0.0:
            return 0.0, 0.0
        cumulative = self.counts.cumsum(0) / self.counts.sum()
        tail = (100 - self.percentile) / 200
        width = 2 * self.limit / BINS
        first = int(torch.searchsorted(cumulative, tail, right=True))
        last = int(torch.searchsorted(cumulative, 1 - tail))
        low = -self.limit + width * min(first, BINS - 1)
        high = -self.limit + width * (min(last, BINS - 1) + 1)
        return max(low, self.low), min(high, self.high)


class MseObserver(HistogramObserver):
    """The range whose grid has the smallest mean squared error on the histogram.

    The extremes are shrunk independently over a list of factors that starts with 1, so the grid is
    never worse than that of the extremes; the error is rounding inside the range plus clipping
    outside it.
    """

    def range(self, dtype: str) -> tuple[float, float]:
        """Best of 32 x 32 shrunk ranges (one end only where the other is zero)."""
        if self.limit == 0.0:
            return 0.0, 0.0
        factors = torch.linspace(1.0, 0.3, 32, dtype=torch.float64)
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        candidates = [
            (bottom, top)
            for bottom in ((factors * low).tolist() if low < 0 else [0.0])
            for top in ((factors * high).tolist() if high > 0 else [0.0])
        ]
        return min(candidates, key=lambda ends: self.error(ends[0], ends[1], dtype))

    def error(self, low: float, high: float, dtype: str) -> float:
        """Mean squared error of the grid of a range, every value taken as its bin's middle."""
        grid = affine_grid(low, high, dtype)
        scale, zero_point = float(grid.scale), int(grid.zero_point)
        centers = self.centers()
        q = (torch.round(centers / scale) + zero_point).clamp(grid.qmin, grid.qmax)
        squares = ((q - zero_point) * scale - centers) ** 2
        return float((self.counts * squares).sum() / self.counts.sum())


OBSERVERS: dict[str, Callable[[], Observer]] = {
    "minmax": MinMaxObserver,
    "moving-average": MovingAverageObserver,
    "percentile": PercentileObserver,
    "mse": MseObserver,
}
