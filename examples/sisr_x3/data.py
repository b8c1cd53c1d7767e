"""Image pairs for x3 super-resolution: generated dead-leaves images, or a DIV2K folder.

A pair is ``(low, high)``: the low image is the high one reduced three times by antialiased bicubic
interpolation and rounded to 8 bits.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "common"))  # what all examples share

import images
import quality
from dead_leaves import dead_leaves
from images import Pair, Pixels

SCALE = 3


def downscale(high: Pixels) -> Pixels:
    """Reduce an image three times by antialiased bicubic interpolation, rounded to 8 bits."""
    height, width = high.shape[:2]
    return _resize(high, (width // SCALE, height // SCALE))


def bicubic(low: Pixels) -> Pixels:
    """Enlarge an image three times by bicubic interpolation: what a network has to beat."""
    height, width = low.shape[:2]
    return _resize(low, (width * SCALE, height * SCALE))


def _resize(image: Pixels, size: tuple[int, int]) -> Pixels:
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def generated_pairs(seeds: Iterable[int], size: int = 192) -> Iterator[Pair]:
    """Yield one dead-leaves pair for each seed; ``size`` is that of the high image."""
    for seed in seeds:
        high = dead_leaves(seed, size)
        yield downscale(high), high


def div2k_pairs(folder: Path) -> Iterator[Pair]:
    """Yield the pairs of a folder laid out as DIV2K is.

    The high images are ``DIV2K_train_HR/0001.png`` and so on. A low image is read from
    ``DIV2K_train_LR_bicubic/X3/0001x3.png`` where there is one and made by `downscale` otherwise.
    A high image is cropped at the right and bottom to three times its low one.

    Raises:
        FileNotFoundError: ``DIV2K_train_HR`` holds no PNG file.
        ValueError: A low image is not a third of the size of its high one.
    """
    paths = sorted((folder / "DIV2K_train_HR").glob("*.png"))
    if not paths:
        raise FileNotFoundError(f"no PNG file in {folder / 'DIV2K_train_HR'}")
    for path in paths:
        high = images.read(path)
        height, width = high.shape[0] // SCALE, high.shape[1] // SCALE
        high = high[: SCALE * height, : SCALE * width]
        low_path = folder / "DIV2K_train_LR_bicubic" / f"X{SCALE}" / f"{path.stem}x{SCALE}.png"
        low = images.read(low_path) if low_path.exists() else downscale(high)
        if low.shape[:2] != (height, width):
            raise ValueError(
                f"{low_path} is {low.shape[1]}x{low.shape[0]}, expected {width}x{height}"
            )
        yield low, high


def psnr(actual: Pixels, expected: Pixels, shave: int = SCALE) -> float:
    """Peak signal-to-noise ratio over RGB in dB, without ``shave`` pixels at each border."""
    inner = (slice(shave, -shave), slice(shave, -shave))
    return quality.psnr(actual[inner], expected[inner])
