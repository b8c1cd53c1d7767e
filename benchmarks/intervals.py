"""95 % confidence intervals: of a mean by Student's t, of a median by order statistics.

Mean of n values with standard deviation s: half width t s / sqrt(n), t the 0.975 quantile of
Student's distribution with n - 1 degrees of freedom.

Median of n values, whatever their distribution: between the k-th smallest and the k-th largest,
k the largest with P(Binomial(n, 1/2) < k) <= 0.025.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def mean_half_width(values: Sequence[float]) -> float:
    """Half width of the interval of the mean; not a number for fewer than two values."""
    if len(values) < 2:
        return math.nan
    t = student_quantile(len(values) - 1)
    return t * statistics.stdev(values) / math.sqrt(len(values))


def student_quantile(freedom: int) -> float:
    """The 0.975 quantile of Student's distribution.

    With t = sqrt(v) tan(a) the density of t is proportional to cos(a)^(v - 1), which is summed
    until it holds 0.95 of the whole.
    """
    steps = 200_000
    width = math.pi / 2 / steps
    weights = [math.cos((i + 0.5) * width) ** (freedom - 1) for i in range(steps)]
    total, missing = sum(weights), 0.0
    for i in range(steps - 1, -1, -1):
        missing += weights[i]
        if missing > 0.05 * total:
            return math.sqrt(freedom) * math.tan((i + 0.5) * width)
    raise AssertionError("the weights sum to their total")


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Ends of the interval of the median; the extremes for fewer than six values."""
    ordered, count = sorted(values), len(values)
    below, k = 0.0, 0
    while below + math.comb(count, k) / 2**count <= 0.025:
        below += math.comb(count, k) / 2**count
        k += 1
    rank = max(k, 1)
    return ordered[rank - 1], ordered[count - rank]
