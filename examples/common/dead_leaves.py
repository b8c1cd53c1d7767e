"""Dead-leaves images: what the examples train, calibrate and measure on without any data set.

A dead-leaves image is what falling leaves leave on the ground: opaque shapes, each hiding what lies
below it. With radii drawn from p(r) ~ r^-3 the image is scale invariant and has the edges, the
occlusions and the 1/f^2 power spectrum of photographs (Lee, Mumford & Huang 2001).

Radii come from inverting the cumulative distribution of p(r) ~ r^-3 on [r_min, r_max]:

    F(r) = (r_min^-2 - r^-2) / (r_min^-2 - r_max^-2)
    r(u) = (r_min^-2 - u (r_min^-2 - r_max^-2))^(-1/2),   u uniform in [0, 1)

A leaf is a unit ball in rotated, stretched coordinates (u, v), of the 1-norm (diamond), the 2-norm
(ellipse) or the infinity-norm (rectangle). Its edge is one pixel wide, so it is antialiased.
"""

import numpy as np
from images import Pixels, to_pixels
from numpy.typing import NDArray

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
