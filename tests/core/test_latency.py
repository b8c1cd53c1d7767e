"""Taking turns, percentiles and intervals; no test here depends on how long anything takes."""

import math
import random

import pytest

from fuseq.latency import interleaved, median_interval, percentile


def test_calls_take_turns_and_warm_up_does_not_count():
    order: list[str] = []
    stages: list[tuple[str, int]] = []
    seconds = interleaved(
        [lambda: order.append("a"), lambda: order.append("b")],
        warmup=1,
        runs=2,
        report=lambda stage, done: stages.append((stage, done)),
    )
    assert "".join(order) == "ab" + "ba" + "ab"
    assert [len(own) for own in seconds] == [2, 2]
    assert all(taken >= 0 for own in seconds for taken in own)
    assert stages == [("warm-up", 1), ("time", 1), ("time", 2)]


@pytest.mark.parametrize(("percent", "rank"), [(50, 50), (90, 90), (99, 99), (100, 100)])
def test_percentiles_are_values_by_rank(percent, rank):
    values = list(range(1, 101))
    random.Random(0).shuffle(values)
    assert percentile(values, percent) == rank
    assert percentile([7.0], percent) == 7.0


@pytest.mark.parametrize("count", [6, 7, 30, 101])
def test_the_interval_of_the_median_holds_it_in_95_of_100_cases(count):
    low, high = (int(end) for end in median_interval(list(range(1, count + 1))))
    missed = [sum(math.comb(count, k) for k in range(rank)) / 2**count for rank in (low, low + 1)]
    assert missed[0] <= 0.025 < missed[1]  # one rank further in would miss too often
    assert high == count + 1 - low
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
