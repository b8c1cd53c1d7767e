"""How long calls take beside each other on a machine whose speed drifts.

Calls take turns: each round times every call once, and begins with another one. What is compared
is the quotient of two times of one round; over the rounds it has a median with an interval.

Median of n values, whatever their distribution: with 95 % confidence between the k-th smallest and
the k-th largest, k the largest with P(Binomial(n, 1/2) < k) <= 0.025.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence


def interleaved(
    calls: Sequence[Callable[[], object]],
    *,
    warmup: int,
    runs: int,
    report: Callable[[str, int], None] = lambda stage, done: None,
) -> list[list[float]]:
    """Seconds of each call in each round, the calls taking turns.

    Args:
        calls: what to time.
        warmup: rounds before those that count.
        runs: rounds that count.
        report: told the stage ("warm-up", "time") and how many of its rounds are done.

    Returns:
        `runs` wall-clock times for each call.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    for number in range(warmup + runs):
        counts = number >= warmup
        for turn in range(len(calls)):
            index = (number + turn) % len(calls)
            start = time.perf_counter()
            calls[index]()
            taken = time.perf_counter() - start
            if counts:
                seconds[index].append(taken)
        report("time" if counts else "warm-up", number + 1 - warmup * counts)
    return seconds


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of 100 of the values do not exceed."""
    rank = math.ceil(percent / 100 * len(values))
    return sorted(values)[max(rank, 1) - 1]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Ends of the interval of the median; the extremes for fewer than six values."""
    ordered, count = sorted(values), len(values)
    below, k = 0.0, 0
    while below + math.comb(count, k) / 2**count <= 0.025:
        below += math.comb(count, k) / 2**count
        k += 1
    rank = max(k, 1)
    return ordered[rank - 1], ordered[count - rank]
