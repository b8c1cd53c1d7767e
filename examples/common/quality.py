"""PSNR and SSIM of 8-bit images, as image restoration reports them.

PSNR is that of all three colours together. SSIM is that of Wang et al. (IEEE TIP 13(4), 2004): a
Gaussian window with a standard deviation of 1.5, the mean of the three colours.
"""

from collections.abc import Callable, Iterable

import numpy as np
from images import Pair, Pixels, Planes, to_pixels, to_planes
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

Run = Callable[[Planes], Planes]


def psnr(actual: Pixels, expected: Pixels) -> float:
    """Peak signal-to-noise ratio over RGB in dB, ``10 log10(255^2 / mean squared error)``."""
    return float(peak_signal_noise_ratio(expected, actual, data_range=255))  # type: ignore[no-untyped-call]


def ssim(actual: Pixels, expected: Pixels) -> float:
    """Structural similarity, at most 1; images are 11 pixels or more wide and high."""
    return float(
        structural_similarity(  # type: ignore[no-untyped-call]
            expected,
            actual,
            channel_axis=2,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def measure(run: Run, pairs: Iterable[Pair], shave: int = 0) -> dict[str, float]:
    """Measure a network.

    Args:
        run: Maps planes ``(1, 3, height, width)`` in 0..1 to planes in 0..1, rounded here.
        pairs: What it is given, and what it should make of it.
        shave: Pixels at each border of the result that do not count.

    Returns:
        ``psnr`` in dB and ``ssim``, means over the images.
    """
    inner = slice(shave, -shave or None)
    found = []
    for given, expected in pairs:
        actual = to_pixels(run(to_planes(given)[None])[0].transpose(1, 2, 0))
        images = actual[inner, inner], expected[inner, inner]
        found.append((psnr(*images), ssim(*images)))
    means = np.mean(found, axis=0)
    return {"psnr": float(means[0]), "ssim": float(means[1])}
