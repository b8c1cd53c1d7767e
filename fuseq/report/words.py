"""Numbers as the page shows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from fuseq.amounts import large, memory

_METRICS = {
    "max_abs": "largest difference",
    "max_rel": "largest relative difference",
    "sqnr_db": "SQNR",
    "psnr_db": "PSNR",
    "differing": "differing",
    "total": "compared",
    "max_lsb": "largest step",
    "float_values": "values computed in float",
    "float_max_lsb": "largest step of those",
}


def decibel(value: float) -> str:
    """An SQNR: 38.3 dB, or the sign for no error at all."""
    return f"{value:.1f} dB" if math.isfinite(value) and value < 400 else "∞"


def metric(value: float, name: str) -> str:
    """A measured number in the unit of its metric."""
    if name.endswith("_db"):
        return decibel(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def metric_name(name: str) -> str:
    """What a metric is called on the page."""
    return _METRICS.get(name, name)


def times(before: float, after: float) -> str:
    """How many times less there is: ÷3.8."""
    return f"÷{before / after:.1f}" if after and before > 1.05 * after else ""


def percent(share: float) -> str:
    """A share of one: 0.03 %."""
    return "none" if not share else f"{share * 100:.2g} %"


def real(value: float) -> str:
    """A real with three digits that count."""
    return f"{value:.3g}"


FILTERS: Mapping[str, Callable[..., Any]] = {
    "large": large,
    "memory": memory,
    "decibel": decibel,
    "metric": metric,
    "metric_name": metric_name,
    "times": times,
    "percent": percent,
    "real": real,
}
