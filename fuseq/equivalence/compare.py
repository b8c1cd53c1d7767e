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
        extra: further metrics (the user's own).
        note: remark to keep with the result.

    Returns:
        SQNR = 10 log10(sum ref^2 / sum (cand - ref)^2), PSNR against the reference's own range.
    """
    signal = noise = count = peak = 0.0
    for a, b in _pairs(reference, candidate):
        signal += float(np.sum(a**2))
        noise += float(np.sum((b - a) ** 2))
        count += a.size
        peak = max(peak, float(a.max() - a.min()) if a.size else 0.0)
    metrics: dict[str, float | int] = {
        "sqnr_db": _decibel(signal, noise),
        "psnr_db": _decibel(peak**2, noise / max(count, 1)),
        **(extra or {}),
    }
    limits = {} if min_sqnr_db is None else {"sqnr_db_min": min_sqnr_db}
    passed = count > 0 and (min_sqnr_db is None or metrics["sqnr_db"] >= min_sqnr_db)
    return Check(id, pair, "fidelity", metrics, limits, passed, note)


def parity(
    id: str,
    pair: str,
    reference: Arrays,
    candidate: Arrays,
    *,
    rounded: Mapping[str, int] | None = None,
    allowed: Mapping[str, int] | None = None,
    note: str = "",
) -> Check:
    """Integers against integers: all of them must be equal.

    Args:
        id: name of the check.
        pair: what is compared, for people.
        reference: integer outputs.
        candidate: integer outputs.
        rounded: largest difference of each further value that is computed in float, by name.
        allowed: steps by which these may differ, where it is more than one. Of all, the largest
            difference is reported that breaks its limit, or the largest.
        note: remark to keep with the result.
    """
    differing = total = largest = 0
    for a, b in zip(reference, candidate, strict=True):
        if a.shape != b.shape:
            differing, total = differing + a.size, total + a.size
            note = f"shapes differ: {a.shape} and {b.shape}"
            continue
        step = steps_between(a, b)
        differing += int(np.count_nonzero(step))
        total += a.size
        largest = max(largest, int(step.max(initial=0)))
    metrics = {"differing": differing, "total": total, "max_lsb": largest}
    gate = {"differing": 0, "max_lsb": 0}
    passed = (total > 0 or bool(rounded)) and differing == 0
    if rounded:
        pairs = [(step, (allowed or {}).get(name, 1)) for name, step in rounded.items()]
        breaking = [(step, limit) for step, limit in pairs if step > limit]
        worst = max(breaking or pairs)
        metrics |= {"float_values": len(rounded), "float_max_lsb": worst[0]}
        gate |= {"float_max_lsb": worst[1]}
        passed = passed and not breaking
    return Check(id, pair, "parity", metrics, gate, passed, note)


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


def _decibel(signal: float, noise: float) -> float:
    """10 log10(signal / noise), capped at 400 dB: JSON has no infinity."""
    if not math.isfinite(noise) or signal <= 0:
        return -400.0
    return 400.0 if noise <= 0 else min(10 * math.log10(signal / noise), 400.0)
