"""The three classes of comparison, on lists of output arrays.

One tolerance cannot serve all three: a healthy int8 network is 30 dB from its float original with
a largest relative error of thousands, and yet must equal its own simulation in every integer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fuseq.equivalence.result import Check

FLOAT32_FORMS = 1e-5
"""Allowed relative difference of two float32 forms of one function, where no float64 truth is at
hand to derive a bound from: 80 roundings of 2^-24, relative to the largest output."""

_SMALLEST = {"within_1lsb": "within_1lsb_min"}
"""Metrics of integers that have a lower limit, as a gate names it."""

Arrays: TypeAlias = Sequence[npt.NDArray[np.generic]]


def exact(
    id: str,
    pair: str,
    reference: Arrays,
    candidate: Arrays,
    *,
    max_rel: float | Sequence[float],
    note: str = "",
) -> Check:
    """The same function, but for rounding.

    Args:
        id: name of the check.
        pair: what is compared, for people.
        reference: float outputs.
        candidate: float outputs of the rewrite.
        max_rel: allowed `max |candidate - reference| / max |reference|`, for all outputs or one
            for each. With one for each, the output is reported that comes closest to its own.
        note: remark to keep with the result.
    """
    limits = max_rel if isinstance(max_rel, Sequence) else [max_rel] * len(reference)
    absolute, relative, allowed = 0.0, 0.0, max(limits, default=0.0)
    passed, closest = any(y.size for y in reference), 0.0
    for (a, b), limit in zip(_pairs(reference, candidate), limits, strict=True):
        difference = _largest(b - a)
        error = difference / max(_largest(a), 1e-300)
        absolute = max(absolute, difference)
        passed = passed and error <= limit
        if error / max(limit, 1e-300) >= closest:
            relative, allowed, closest = error, limit, error / max(limit, 1e-300)
    metrics = {"max_abs": absolute, "max_rel": relative}
    return Check(id, pair, "exact", metrics, {"max_rel": allowed}, passed, note)


def fidelity(
    id: str,
    pair: str,
    reference: Arrays,
    candidate: Arrays,
    *,
    min_sqnr_db: float | None = None,
    min_psnr_db: float | None = None,
    data_range: tuple[float, float] | None = None,
    extra: Mapping[str, float] | None = None,
    note: str = "",
) -> Check:
    """Float against int8: how much signal is left over the quantization noise.

    Args:
        id: name of the check.
        pair: what is compared, for people.
        reference: float outputs.
        candidate: dequantized outputs.
        min_sqnr_db: gate on SQNR, or None to report only.
        min_psnr_db: gate on PSNR, likewise.
        data_range: smallest and largest value the outputs can mean; by default what `reference`
            takes.
        extra: further metrics (the user's own).
        note: remark to keep with the result.

    Returns:
        SQNR = 10 log10(sum ref^2 / sum (cand - ref)^2) and PSNR = 10 log10(range^2 / mean error^2).
    """
    signal = noise = count = peak = 0.0
    for a, b in _pairs(reference, candidate):
        signal += float(np.sum(a**2))
        noise += float(np.sum((b - a) ** 2))
        count += a.size
        peak = max(peak, float(a.max() - a.min()) if a.size else 0.0)
    if data_range is not None:
        peak = data_range[1] - data_range[0]
    metrics: dict[str, float | int] = {
        "sqnr_db": decibel(signal, noise),
        "psnr_db": decibel(peak**2, noise / max(count, 1)),
        **(extra or {}),
    }
    gates = {"sqnr_db_min": min_sqnr_db, "psnr_db_min": min_psnr_db}
    limits = {name: limit for name, limit in gates.items() if limit is not None}
    held = (metrics[name.removesuffix("_min")] >= limit for name, limit in limits.items())
    return Check(id, pair, "fidelity", metrics, limits, count > 0 and all(held), note)


def parity(
    id: str,
    pair: str,
    reference: Arrays,
    candidate: Arrays,
    *,
    rounded: Mapping[str, int] | None = None,
    allowed: Mapping[str, int] | None = None,
    gate: Mapping[str, float] | None = None,
    note: str = "",
) -> Check:
    """Integers against integers: all of them must be equal, unless `gate` allows more.

    Args:
        id: name of the check.
        pair: what is compared, for people.
        reference: integer outputs.
        candidate: integer outputs.
        rounded: largest difference of each further value that is computed in float, by name.
        allowed: steps by which these may differ, where it is more than one. Of all, the largest
            difference is reported that breaks its limit, or the largest.
        gate: largest `differing` and `max_lsb`, and smallest share `within_1lsb`; any of them.
        note: remark to keep with the result.
    """
    differing = total = largest = near = 0
    for a, b in zip(reference, candidate, strict=True):
        if a.shape != b.shape:
            differing, total, largest = differing + a.size, total + a.size, 2**31
            note = f"shapes differ: {a.shape} and {b.shape}"
            continue
        step = steps_between(a, b)
        differing += int(np.count_nonzero(step))
        total += a.size
        near += int(np.count_nonzero(step <= 1))
        largest = max(largest, int(step.max(initial=0)))
    metrics: dict[str, float | int] = {"differing": differing, "total": total, "max_lsb": largest}
    limits: dict[str, float | int] = {"differing": 0, "max_lsb": 0}
    held = differing == 0
    if gate is not None:
        metrics["within_1lsb"] = near / max(total, 1)
        limits = {_SMALLEST.get(name, name): limit for name, limit in gate.items()}
        held = all(
            metrics[name] >= limit if name in _SMALLEST else metrics[name] <= limit
            for name, limit in gate.items()
        )
    passed = (total > 0 or bool(rounded)) and held
    if rounded:
        pairs = [(step, (allowed or {}).get(name, 1)) for name, step in rounded.items()]
        breaking = [(step, limit) for step, limit in pairs if step > limit]
        worst = max(breaking or pairs)
        metrics |= {"float_values": len(rounded), "float_max_lsb": worst[0]}
        limits |= {"float_max_lsb": worst[1]}
        passed = passed and not breaking
    return Check(id, pair, "parity", metrics, limits, passed, note)


def steps_between(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Absolute differences of integers, int64, shaped like `theirs`; 2**31 where shapes differ."""
    if ours.shape != theirs.shape:
        return np.full(theirs.shape, 2**31)
    return np.abs(ours.astype(np.int64) - theirs.astype(np.int64))


def relative_limits(bounds: Sequence[float], reference: Arrays) -> list[float]:
    """Absolute limits, one for each output, as `exact` takes them."""
    pairs = zip(bounds, reference, strict=True)
    return [bound / max(_largest(y.astype(np.float64)), 1e-300) for bound, y in pairs]


def _pairs(reference: Arrays, candidate: Arrays) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = []
    for a, b in zip(reference, candidate, strict=True):
        shaped = a.shape == b.shape
        x = a.astype(np.float64)
        pairs.append((x, b.astype(np.float64) if shaped else np.full_like(x, np.inf)))
    return pairs


def _largest(values: npt.NDArray[np.float64]) -> float:
    if not values.size:
        return 0.0
    largest = float(np.abs(values).max())
    return largest if math.isfinite(largest) else math.inf


def decibel(signal: float, noise: float) -> float:
    """10 log10(signal / noise), capped at 400 dB: JSON has no infinity."""
    if not math.isfinite(noise) or signal <= 0:
        return -400.0
    return 400.0 if noise <= 0 else min(10 * math.log10(signal / noise), 400.0)
