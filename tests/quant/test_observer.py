from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fuseq.quant.grid import affine_grid
from fuseq.quant.observer import (
    BINS,
    OBSERVERS,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageObserver,
    MseObserver,
    Observer,
    PercentileObserver,
)


def stream(kind: str) -> Tensor:
    """A long-tailed, a one-sided or a nearly constant value."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(60_000, generator=generator)
    return {"tails": x**3, "relu": x.clamp_min(0) * 7, "offset": 5 + 0.01 * x}[kind]


def observed(observer: Observer, parts: Sequence[Tensor]) -> Observer:
    for part in parts:
        observer.update(part)
    return observer


def splits(x: Tensor) -> list[list[Tensor]]:
    """The same values whole, in uneven batches, backwards, and by growing magnitude."""
    parts = list(torch.split(x, [1, 17, 4000, len(x) - 4018]))
    return [[x], parts, parts[::-1], list(torch.split(x[x.abs().argsort()], 7000))]


KINDS = ("tails", "relu", "offset")


@pytest.mark.parametrize("kind", KINDS)
def test_min_max_is_exact_however_the_data_is_split(kind: str) -> None:
    x = stream(kind)
    for parts in splits(x):
        assert observed(MinMaxObserver(), parts).range("uint8") == (float(x.min()), float(x.max()))


def test_moving_average_follows_its_formula() -> None:
    batches = [torch.tensor([-1.0, 1.0]), torch.tensor([-3.0, 5.0]), torch.tensor([0.0, 2.0])]
    low, high = observed(MovingAverageObserver(0.25), batches).range("uint8")
    assert low == pytest.approx(((-1.0 * 0.75) + 0.25 * -3.0) * 0.75 + 0.25 * 0.0)
    assert high == pytest.approx(((1.0 * 0.75) + 0.25 * 5.0) * 0.75 + 0.25 * 2.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentile", [99.0, 99.99])
def test_percentile_is_within_two_bins_of_the_exact_one(kind: str, percentile: float) -> None:
    x = stream(kind)
    tail = (100 - percentile) / 200
    exact = np.quantile(x.double().numpy(), [tail, 1 - tail], method="inverted_cdf")
    bound = float(x.abs().max()) / 1024
    for parts in splits(x):
        found = observed(PercentileObserver(percentile), parts).range("uint8")
        assert np.abs(np.array(found) - exact).max() <= 2 * bound


def exact_error(x: Tensor, ends: tuple[float, float]) -> float:
    grid = affine_grid(*ends, "uint8")
    return float(((grid.dequantize(grid.quantize(x)) - x).double() ** 2).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_nearly_the_best_on_the_data_itself(kind: str) -> None:
    x = stream(kind)
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    factors = np.linspace(1.0, 0.3, 32)
    ranges = [(a * low, b * high) for a in (factors if low else [1.0]) for b in factors]
    best = min(exact_error(x, ends) for ends in ranges)
    # A value stands for the middle of its bin: off by half a width, which is at most 1/2048 of the
    # largest magnitude, in root mean square.
    slack = float(x.abs().max()) / 2048
    for parts in splits(x):
        found = exact_error(x, observed(MseObserver(), parts).range("uint8"))
        assert found**0.5 <= best**0.5 + 2 * slack
        assert found <= exact_error(x, (low, high)) * 1.02


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_mse_is_never_worse_than_the_extremes_on_its_own_objective(kind: str, dtype: str) -> None:
    observer = MseObserver()
    observer.update(stream(kind))
    chosen = observer.error(*observer.range(dtype), dtype)
    assert chosen <= observer.error(observer.low, observer.high, dtype)


def test_mse_cuts_an_outlier_off() -> None:
    x = torch.cat(
        [torch.randn(100_000, generator=torch.Generator().manual_seed(0)), torch.ones(1) * 9]
    )
    observer = MseObserver()
    observer.update(x)
    assert observer.range("uint8")[1] < 8.0


def test_doubling_the_range_keeps_every_count() -> None:
    x = stream("tails")
    observer = HistogramForTest()
    for part in torch.split(x[x.abs().argsort()], 3000):
        observer.update(part)
        assert float(observer.counts.sum()) == observer.seen
    assert float(x.abs().max()) <= observer.limit < 2 * float(x.abs().max())
    # Counted afresh over the final range, every bin is the same.
    fresh = torch.histc(x.double() / observer.limit, BINS, -1.0, 1.0)
    assert int((observer.counts - fresh).abs().sum()) <= 4  # values on an edge between two bins


class HistogramForTest(HistogramObserver):
    def range(self, dtype: str) -> tuple[float, float]:
        raise NotImplementedError


def test_counts_stay_exact_beyond_what_float32_counts() -> None:
    observer = PercentileObserver()
    observer.update(torch.zeros(1).expand(2**24 + 8))
    observer.update(torch.ones(1))
    assert float(observer.counts.sum()) == observer.seen == 2**24 + 9


@pytest.mark.parametrize("name", OBSERVERS)
def test_state_does_not_grow_with_the_data(name: str) -> None:
    observer = OBSERVERS[name]()

    def size() -> int:
        return sum(v.numel() if isinstance(v, Tensor) else 1 for v in vars(observer).values())

    observer.update(torch.randn(100))
    first = size()
    for scale in range(1, 30):
        observer.update(torch.randn(1000) * scale)
    assert size() == first
    assert observer.seen == 29_100


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("value", [0.0, 4.0, -4.0, 1e-42, 3.3e38])
def test_a_constant_value_gives_a_grid_that_holds_it(name: str, value: float) -> None:
    observer = OBSERVERS[name]()
    for _ in range(3):
        observer.update(torch.full((50,), value))
    grid = affine_grid(*observer.range("uint8"), "uint8")
    real = torch.tensor(value)
    # Percentile and MSE may move the end by a bin or a factor, never lose the value.
    assert float((grid.dequantize(grid.quantize(real)) - real).abs()) <= max(
        abs(value) / 100, 1e-17
    )


@pytest.mark.parametrize("name", OBSERVERS)
def test_an_empty_batch_changes_nothing(name: str) -> None:
    observer = OBSERVERS[name]()
    observer.update(torch.randn(10))
    before = observer.range("uint8")
    observer.update(torch.empty(0, 3))
    assert observer.range("uint8") == before
    assert observer.seen == 10


def test_huge_ranges_do_not_overflow_the_bins() -> None:
    observer = PercentileObserver(90.0)
    observer.update(torch.tensor([-3.3e38, 3.3e38] + [1.0] * 98))
    assert float(observer.counts.sum()) == 100
