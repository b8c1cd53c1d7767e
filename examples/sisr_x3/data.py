"""Image pairs for x3 super-resolution: generated dead-leaves images, or a DIV2K folder.

A dead-leaves image is what falling leaves leave on the ground: opaque shapes, each hiding what lies
below it. With radii drawn from p(r) ~ r^-3 the image is scale invariant and has the edges, the
occlusions and the 1/f^2 power spectrum of photographs (Lee, Mumford & Huang 2001), so a network can
be trained and calibrated here without any data set.

Radii come from inverting the cumulative distribution of p(r) ~ r^-3 on [r_min, r_max]:

    F(r) = (r_min^-2 - r^-2) / (r_min^-2 - r_max^-2)
    r(u) = (r_min^-2 - u (r_min^-2 - r_max^-2))^(-1/2),   u uniform in [0, 1)

A leaf is a unit ball in rotated, stretched coordinates (u, v), of the 1-norm (diamond), the 2-norm
(ellipse) or the infinity-norm (rectangle). Its edge is one pixel wide, so it is antialiased.

Images are ``uint8`` arrays ``(height, width, 3)`` in RGB. A pair is ``(low, high)``: the low image
is the high one reduced three times by antialiased bicubic interpolation and rounded to 8 bits.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Pair = tuple[Pixels, Pixels]

SCALE = 3
SMALLEST_RADIUS, LARGEST_RADIUS = 6.0, 90.0
# The mean area is about 2.3 E[r^2] = 2.3 * 2 r_min^2 ln(r_max / r_min) = 450 pixels, so the leaves
# cover the ground almost four times over and leave exp(-3.7), under 3 percent, of it in view.
PIXELS_PER_LEAF = 120


def dead_leaves(seed: int, size: int = 192) -> Pixels:
    """Draw one dead-leaves image.

    Args:
        seed: The same seed gives the same image.
        size: Height and width in pixels.

    Returns:
        An image ``(size, size, 3)``.
    """
    rng = np.random.default_rng(seed)
    textures = np.stack([_fractal_noise(rng, 2 * size) for _ in range(2)])
    image = np.full((size, size, 3), rng.random(3), np.float32)
    margin = LARGEST_RADIUS / 2
    count = int((size + 2 * margin) ** 2 / PIXELS_PER_LEAF)
    centers = rng.uniform(-margin, size + margin, (count, 2))
    for center, radius in zip(centers, _radii(rng, count), strict=True):
        _drop_leaf(image, textures, center, radius, rng)
    return to_pixels(image)


def _radii(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    high, low = SMALLEST_RADIUS**-2, LARGEST_RADIUS**-2
    return 1 / np.sqrt(high - rng.random(count) * (high - low))


def _fractal_noise(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Noise ``(size, size)`` of amplitude 1/f, mean 0 and standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) / frequency, (size, size))
    return np.asarray(noise / noise.std(), np.float32)


def _drop_leaf(
    image: NDArray[np.float32],
    textures: NDArray[np.float32],
    center: NDArray[np.float64],
    radius: float,
    rng: np.random.Generator,
) -> None:
    """Paint one leaf over ``image``, which is the canvas and changes."""
    size = len(image)
    stretch = rng.uniform(0.5, 1.0)
    angle = rng.uniform(0, np.pi)
    # The corner of a stretched rectangle lies at most sqrt(2) radii from the centre.
    reach = 1.5 * radius + 1
    top, left = np.maximum(center - reach, 0).astype(int)
    bottom, right = np.minimum(center + reach, size).astype(int)
    if top >= bottom or left >= right:
        return
    y = (np.arange(top, bottom, dtype=np.float32) - np.float32(center[0]))[:, None]
    x = (np.arange(left, right, dtype=np.float32) - np.float32(center[1]))[None]
    cosine, sine = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
    u = cosine * x + sine * y
    v = (cosine * y - sine * x) / np.float32(stretch)
    norm = (np.abs(u) + np.abs(v), np.sqrt(u * u + v * v), np.maximum(np.abs(u), np.abs(v)))[
        rng.integers(3)
    ]
    alpha = ((1 - norm) * np.float32(radius * stretch) + np.float32(0.5)).clip(0, 1)[..., None]

    row, column = rng.integers(0, size, 2)
    noise = textures[rng.integers(2), row : row + len(y), column : column + x.shape[1]]
    shade = np.float32(rng.uniform(-0.15, 0.15)) * u + np.float32(rng.exponential(0.03)) * noise
    if rng.random() < 0.15:
        waves = radius / rng.uniform(1.0, 4.0)
        shade = shade + np.float32(rng.uniform(0.02, 0.12)) * np.sin(np.float32(waves) * v)
    color = (rng.uniform(0.15, 0.85) + rng.normal(0, 0.08, 3)).astype(np.float32)
    leaf = color + shade[..., None]
    view = image[top:bottom, left:right]
    view += alpha * (leaf - view)


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
        high = _read(path)
        height, width = high.shape[0] // SCALE, high.shape[1] // SCALE
        high = high[: SCALE * height, : SCALE * width]
        low_path = folder / "DIV2K_train_LR_bicubic" / f"X{SCALE}" / f"{path.stem}x{SCALE}.png"
        low = _read(low_path) if low_path.exists() else downscale(high)
        if low.shape[:2] != (height, width):
            raise ValueError(
                f"{low_path} is {low.shape[1]}x{low.shape[0]}, expected {width}x{height}"
            )
        yield low, high


def _read(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def crop(pair: Pair, size: int, rng: np.random.Generator) -> Pair:
    """Cut the same random square from both images, ``size`` pixels wide in the low one."""
    low, high = pair
    top = int(rng.integers(low.shape[0] - size + 1))
    left = int(rng.integers(low.shape[1] - size + 1))
    rows, columns = slice(top, top + size), slice(left, left + size)
    high_rows = slice(SCALE * top, SCALE * (top + size))
    high_columns = slice(SCALE * left, SCALE * (left + size))
    return low[rows, columns], high[high_rows, high_columns]


def batch(
    pairs: Sequence[Pair], count: int, size: int, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw random patches, each turned and mirrored at random.

    Args:
        pairs: Where to cut from; every low image is at least ``size`` wide and high.
        count: Number of patches.
        size: Width of a low patch in pixels.
        rng: The source of randomness; it advances.

    Returns:
        Low patches ``(count, 3, size, size)`` and high patches ``(count, 3, 3 size, 3 size)``,
        both in 0..1.
    """
    chosen = rng.integers(len(pairs), size=count)
    lows, highs = zip(*(_turned(crop(pairs[i], size, rng), rng) for i in chosen), strict=True)
    return np.stack(lows), np.stack(highs)


def _turned(pair: Pair, rng: np.random.Generator) -> tuple[NDArray[np.float32], ...]:
    """Turn and mirror both images alike, at random, and return their planes."""
    turns, step = int(rng.integers(4)), int(rng.choice((-1, 1)))
    return tuple(to_planes(np.rot90(image, turns)[:, ::step]) for image in pair)


def to_planes(image: Pixels) -> NDArray[np.float32]:
    """Turn an image ``(height, width, 3)`` in 0..255 into planes ``(3, height, width)`` in 0..1."""
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / np.float32(255)


def to_pixels(image: NDArray[np.float32]) -> Pixels:
    """Round an image ``(height, width, 3)`` in 0..1 to 8 bits; values outside are clipped."""
    return np.asarray(np.rint(255 * image.clip(0, 1)), np.uint8)


def psnr(actual: Pixels, expected: Pixels, shave: int = SCALE) -> float:
    """Peak signal-to-noise ratio over RGB in dB, without ``shave`` pixels at each border.

    10 log10(255^2 / mean squared error); infinite for equal images.
    """
    inner = (slice(shave, -shave), slice(shave, -shave))
    error = np.mean((actual[inner].astype(np.float64) - expected[inner]) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
