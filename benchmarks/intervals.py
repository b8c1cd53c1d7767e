"""The 95 % confidence interval of a mean, by Student's t; that of a median is in `fuseq.latency`.

Mean of n values with standard deviation s: half width t s / sqrt(n), t the 0.975 quantile of
Student's distribution with n - 1 degrees of freedom.
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
