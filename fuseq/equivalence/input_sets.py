"""Inputs by name: generated sets of images, `.npz` files, folders of images.

*natural*: the power spectrum of photographs falls as 1/f^2 (Field, J. Opt. Soc. Am. A 4(12), 1987),
so these are noise of amplitude 1/f with random phases; channels share most of it, as colours do.
*range*: independent and uniform, which reaches every integer of an input's grid. *edges*: straight
steps at every angle and checkerboards of every period, black against white. *constant*: flat images
from one end of the range to the other; what is not constant behind them comes from borders.

Sets are seeded: the same name, seed and shapes give the same numbers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fuseq.calibration import IMAGES, read_arrays, read_image
from fuseq.errors import FuseqError
from fuseq.plugins import did_you_mean

Array: TypeAlias = npt.NDArray[np.float32]
Batch: TypeAlias = tuple[Array, ...]

COMMON = 0.8
"""Share of a natural image's amplitude that all its channels have in common."""


def input_set(
    name: str,
    shapes: Sequence[Sequence[int]],
    ranges: Sequence[tuple[float, float]],
    *,
    samples: int,
    seed: int,
) -> list[Batch]:
    """Batches of a named set.

    Args:
        name: of a generated set, a `.npz` file with one array for each input, or a folder of
            images.
        shapes: of the inputs; channels first.
        ranges: smallest and largest value of each input, for generated sets.
        samples: how many batches are generated, or read from a folder at most.
        seed: of generated sets.

    Raises:
        FuseqError: FQ006 for what does not exist, holds nothing or cannot be read.
    """
    if name in GENERATED:
        return [
            tuple(
                _generated(name, shape, interval, sample, samples, _seed(seed, sample, position))
                for position, (shape, interval) in enumerate(zip(shapes, ranges, strict=True))
            )
            for sample in range(samples)
        ]
    path = Path(name)
    if path.suffix == ".npz":
        return [tuple(read_arrays(path).values())]
    if os.path.isdir(path):
        return _folder(path, shapes, samples)
    raise FuseqError(
        "FQ006",
        f"no inputs at '{name}'",
        why=f"generated sets are {', '.join(GENERATED)}; a file ends in .npz",
        fix=did_you_mean(name, GENERATED) or "a .npz file, a folder of images, or a generated set",
    )


def _folder(path: Path, shapes: Sequence[Sequence[int]], samples: int) -> list[Batch]:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGES)[:samples]
    if not files or len(shapes) != 1:
        raise FuseqError(
            "FQ006",
            f"images are one input, not {len(shapes)}" if files else f"'{path}' holds no images",
            fix="a .npz file with one array for each input",
        )
    channels = shapes[0][1] if len(shapes[0]) == 4 else 3
    return [(read_image(file, "L" if channels == 1 else "RGB")[None],) for file in files]


def _seed(seed: int, sample: int, position: int) -> np.random.Generator:
    return np.random.default_rng([seed, sample, position])


def _generated(
    name: str,
    shape: Sequence[int],
    interval: tuple[float, float],
    sample: int,
    samples: int,
    random: np.random.Generator,
) -> Array:
    """One array in an interval. What is no image has no spectrum and no edges: it is uniform."""
    low, high = interval
    made = GENERATED[name if len(shape) == 4 or name == "constant" else "range"]
    unit = made(tuple(shape), random, sample / max(samples - 1, 1))
    return (low + (high - low) * unit).clip(low, high).astype(np.float32)


def _natural(shape: tuple[int, ...], random: np.random.Generator, place: float) -> Array:
    count, channels, height, width = shape
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = 1 / max(height, width)

    def noise(*sizes: int) -> npt.NDArray[np.float64]:
        white = np.fft.rfft2(random.standard_normal((*sizes, height, width)))
        spread: npt.NDArray[np.float64] = np.fft.irfft2(white / frequency, (height, width))
        return spread

    own = math.sqrt(1 - COMMON**2)
    image = COMMON * noise(count, 1) + own * noise(count, channels)
    low = image.min((1, 2, 3), keepdims=True)
    span = image.max((1, 2, 3), keepdims=True) - low
    unit: Array = (image - low) / np.where(span > 0, span, 1)
    return unit


def _range(shape: tuple[int, ...], random: np.random.Generator, place: float) -> Array:
    unit = random.random(shape, np.float32)
    if unit.size > 1:  # both ends of the range are reached
        unit.flat[0], unit.flat[-1] = 0, 1
    return unit


def _edges(shape: tuple[int, ...], random: np.random.Generator, place: float) -> Array:
    count, channels, height, width = shape
    rows, columns = np.mgrid[:height, :width]
    unit = np.empty(shape, np.float32)
    for image, channel in np.ndindex(count, channels):
        if random.random() < 0.5:
            period = 2 ** int(random.integers(0, max(int(math.log2(min(height, width))), 1)))
            unit[image, channel] = (rows // period + columns // period) % 2
        else:
            angle = random.random() * 2 * math.pi
            across = math.cos(angle) * (rows - random.random() * height)
            across += math.sin(angle) * (columns - random.random() * width)
            unit[image, channel] = across > 0
    return unit


def _constant(shape: tuple[int, ...], random: np.random.Generator, place: float) -> Array:
    return np.full(shape, place, np.float32)


GENERATED: Mapping[str, Callable[[tuple[int, ...], np.random.Generator, float], Array]] = {
    "natural": _natural,
    "range": _range,
    "edges": _edges,
    "constant": _constant,
}
"""Maker of each set: shape, generator, place of the sample in 0..1 -> values in 0..1."""
