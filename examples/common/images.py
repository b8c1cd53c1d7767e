"""Images, pairs of them, and the patches that a network is trained on.

An image is a ``uint8`` array ``(height, width, 3)`` in RGB. A pair is what a network is given and
what it should make of it; the second image is as large as the first or a whole number of times
larger.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Pixels = NDArray[np.uint8]
Planes = NDArray[np.float32]
Pair = tuple[Pixels, Pixels]

HELD_OUT = 32


def to_planes(image: Pixels) -> Planes:
    """Turn an image ``(height, width, 3)`` in 0..255 into planes ``(3, height, width)`` in 0..1."""
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / np.float32(255)


def to_pixels(image: Planes) -> Pixels:
    """Round an image ``(height, width, 3)`` in 0..1 to 8 bits; values outside are clipped."""
    return np.asarray(np.rint(255 * image.clip(0, 1)), np.uint8)


def read(path: Path) -> Pixels:
    """Read an image file."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def folder_pairs(given: Path, wanted: Path) -> Iterator[Pair]:
    """Yield the pairs of two folders, by file name.

    Raises:
        FileNotFoundError: `given` holds no image, or `wanted` lacks one of them.
        ValueError: Two images of one name differ in size.
    """
    paths = sorted(p for p in given.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not paths:
        raise FileNotFoundError(f"no PNG or JPEG file in {given}")
    for path in paths:
        pair = read(path), read(wanted / path.name)
        if pair[0].shape != pair[1].shape:
            raise ValueError(f"{path} and {wanted / path.name} differ in size")
        yield pair


def crop(pair: Pair, size: int, rng: np.random.Generator) -> Pair:
    """Cut the same random square from both images, ``size`` pixels wide in the first."""
    low, high = pair
    scale = high.shape[0] // low.shape[0]
    top = int(rng.integers(low.shape[0] - size + 1))
    left = int(rng.integers(low.shape[1] - size + 1))
    rows, columns = slice(top, top + size), slice(left, left + size)
    high_rows = slice(scale * top, scale * (top + size))
    high_columns = slice(scale * left, scale * (left + size))
    return low[rows, columns], high[high_rows, high_columns]


def crops(found: Iterable[Pair], count: int, size: int, rng: np.random.Generator) -> list[Pair]:
    """Keep one crop of each of the first ``count`` pairs: photographs are too large for memory."""
    return [crop(pair, size, rng) for pair in itertools.islice(found, count)]


def hold_out(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Split what was read into pairs to train with and the last 32, to measure with.

    Raises:
        ValueError: There are not more than these.
    """
    if len(pairs) <= HELD_OUT:
        raise ValueError(f"{len(pairs)} pairs; {HELD_OUT} are held out, and training needs some")
    return pairs[:-HELD_OUT], pairs[-HELD_OUT:]


def batch(
    pairs: Sequence[Pair], count: int, size: int, rng: np.random.Generator
) -> tuple[Planes, Planes]:
    """Draw random patches, each turned and mirrored at random.

    Args:
        pairs: Where to cut from; the first image of each is at least ``size`` wide and high.
        count: Number of patches.
        size: Width of a patch of the first image in pixels.
        rng: The source of randomness; it advances.

    Returns:
        Patches ``(count, 3, size, size)`` of the first images, and those of the second, in 0..1.
    """
    chosen = rng.integers(len(pairs), size=count)
    lows, highs = zip(*(_turned(crop(pairs[i], size, rng), rng) for i in chosen), strict=True)
    return np.stack(lows), np.stack(highs)


def batches(
    pairs: Sequence[Pair], count: int, size: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches without end; see `batch`."""
    while True:
        low, high = (torch.from_numpy(images) for images in batch(pairs, count, size, rng))
        # The whole network follows the layout of its input, and this one trains faster.
        yield low.contiguous(memory_format=torch.channels_last), high


def draws(
    pairs: Sequence[Pair], count: int, size: int, seed: int
) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Yield `batches` without end: each training takes the next, and sees other patches."""
    for number in itertools.count(seed):
        yield batches(pairs, count, size, np.random.default_rng(number))


def _turned(pair: Pair, rng: np.random.Generator) -> tuple[Planes, ...]:
    """Turn and mirror both images alike, at random, and return their planes."""
    turns, step = int(rng.integers(4)), int(rng.choice((-1, 1)))
    return tuple(to_planes(np.rot90(image, turns)[:, ::step]) for image in pair)
