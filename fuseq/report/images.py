"""Inputs and outputs that are images, as PNGs inside the page: restoration is judged by eye."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

AMPLIFIED = 8
"""How many times larger a difference is shown than it is."""

_SPANS = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
_LEEWAY = 0.3  # of a span: networks overshoot
_SEEN = 0.1  # of a span: what has less contrast is no image of that span
_SMALLEST = 8


@dataclass(frozen=True)
class Picture:
    """One image in the page.

    Attributes:
        uri: `data:image/png;base64,...`.
        width: in pixels.
        height: in pixels.
    """

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Strip:
    """One image output, beside what it was computed from.

    Attributes:
        name: of the output.
        span: the reals shown as black and as white.
        real: of the float program.
        shipped: of the shipped file, or None for a bundle that is not quantized.
        difference: of the two, `AMPLIFIED`; grey where they agree.
        psnr_db: of the shipped output against the float one, for the span; or None.
    """

    name: str
    span: tuple[float, float]
    real: Picture
    shipped: Picture | None
    difference: Picture | None
    psnr_db: float | None


def is_image(values: np.ndarray) -> bool:
    """Whether an array is a batch of grey or RGB images `[N, C, H, W]`."""
    return values.ndim == 4 and values.shape[1] in (1, 3) and min(values.shape[2:]) >= _SMALLEST


def picture(values: np.ndarray, span: tuple[float, float]) -> Picture:
    """The first image of a batch."""
    low, high = span
    return _png((values[0].astype(np.float64) - low) / (high - low))


def strip(
    name: str,
    real: np.ndarray,
    shipped: np.ndarray | None,
    inputs: Sequence[np.ndarray] = (),
) -> Strip:
    """An image output of the float program and of the shipped file.

    Args:
        name: of the output.
        real: `[N, C, H, W]`.
        shipped: of the same shape, or None.
        inputs: image inputs, which the span is taken from too.
    """
    span = span_of(real, *inputs)
    if shipped is None:
        return Strip(name, span, picture(real, span), None, None, None)
    difference = (shipped[0].astype(np.float64) - real[0]) / (span[1] - span[0])
    noise = float(np.mean(difference**2))
    return Strip(
        name,
        span,
        picture(real, span),
        picture(shipped, span),
        _png(0.5 + AMPLIFIED * difference),
        float(-10 * np.log10(noise)) if noise else None,
    )


def span_of(*values: np.ndarray) -> tuple[float, float]:
    """The usual span that holds nearly all of some images, or their own extremes."""
    low = min(float(np.percentile(x, 1)) for x in values)
    high = max(float(np.percentile(x, 99)) for x in values)
    for first, last in _SPANS:
        size = last - first
        fits = low >= first - _LEEWAY * size and high <= last + _LEEWAY * size
        if fits and high - low >= _SEEN * size:
            return first, last
    low, high = min(float(x.min()) for x in values), max(float(x.max()) for x in values)
    return low, max(high, low + 1e-6)


def _png(planes: npt.NDArray[np.float64]) -> Picture:
    """An image `[C, H, W]` in 0..1."""
    pixels = np.rint(np.nan_to_num(planes).clip(0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0).copy())
    with io.BytesIO() as stored:
        image.save(stored, format="PNG", optimize=True)
        encoded = base64.b64encode(stored.getvalue()).decode("ascii")
    return Picture(f"data:image/png;base64,{encoded}", image.width, image.height)
