"""What the examples share: their images, their measures, their loop."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[2] / "examples" / "common"))

import dead_leaves
import images
import quality
import report
import training
from dead_leaves import LARGEST_RADIUS, SMALLEST_RADIUS


def test_dead_leaves_depend_on_the_seed_only() -> None:
    first = dead_leaves.dead_leaves(7, size=96)
    assert first.shape == (96, 96, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, dead_leaves.dead_leaves(7, size=96))
    assert np.any(first != dead_leaves.dead_leaves(8, size=96))


def test_leaf_radii_follow_the_inverse_cube_law() -> None:
    radii = dead_leaves._radii(np.random.default_rng(0), 200_000)
    assert radii.min() >= SMALLEST_RADIUS
    assert radii.max() <= LARGEST_RADIUS
    # P(r > 2 r_min) = (1/4 - q) / (1 - q) with q = (r_min / r_max)^2.
    q = (SMALLEST_RADIUS / LARGEST_RADIUS) ** 2
    expected = (0.25 - q) / (1 - q)
    assert np.mean(radii > 2 * SMALLEST_RADIUS) == pytest.approx(expected, abs=0.005)


def test_dead_leaves_have_the_spectrum_of_photographs() -> None:
    """Photographs have power 1/f^2 to 1/f^3; white noise would have slope 0."""
    size = 192
    window = np.outer(np.hanning(size), np.hanning(size))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    power = np.zeros((size, size))
    for seed in range(8):
        gray = dead_leaves.dead_leaves(seed, size).mean(axis=2)
        power += np.abs(np.fft.fft2(window * (gray - gray.mean()))) ** 2
    edges = np.geomspace(4 / size, 0.35, 9)
    bands = [(frequency >= low) & (frequency < high) for low, high in pairwise(edges)]
    slope = np.polyfit(
        np.log([frequency[band].mean() for band in bands]),
        np.log([power[band].mean() for band in bands]),
        1,
    )[0]
    assert -3.2 < slope < -1.8


@pytest.mark.parametrize("scale", [1, 3])
def test_patches_of_a_batch_show_the_same_place(scale: int) -> None:
    highs = [dead_leaves.dead_leaves(seed, 96) for seed in range(3)]
    reduced = [high.reshape(96 // scale, scale, 96 // scale, scale, 3) for high in highs]
    pairs = [
        (np.rint(x.mean(axis=(1, 3))).astype(np.uint8), high)
        for x, high in zip(reduced, highs, strict=True)
    ]
    low, high = images.batch(pairs, count=6, size=16, rng=np.random.default_rng(0))
    assert low.shape == (6, 3, 16, 16)
    assert high.shape == (6, 3, 16 * scale, 16 * scale)
    cells = high.reshape(6, 3, 16, scale, 16, scale).mean(axis=(3, 5))
    np.testing.assert_allclose(cells, low, rtol=0, atol=0.51 / 255)


def test_pairs_of_two_folders(tmp_path: Path) -> None:
    given, wanted = tmp_path / "given", tmp_path / "wanted"
    for number, folder in enumerate((given, wanted)):
        folder.mkdir()
        Image.new("RGB", (9, 7), (1, 2, number)).save(folder / "a.png")
        (folder / "notes.txt").write_text("not an image")
    ((first, second),) = images.folder_pairs(given, wanted)
    assert first.shape == second.shape == (7, 9, 3)
    assert np.all(first == (1, 2, 0))
    assert np.all(second == (1, 2, 1))
    Image.new("RGB", (9, 8)).save(wanted / "a.png")
    with pytest.raises(ValueError, match=r"a\.png and .*a\.png differ in size"):
        list(images.folder_pairs(given, wanted))
    (given / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match="no PNG or JPEG file in"):
        list(images.folder_pairs(given, wanted))


def test_some_pairs_are_held_out() -> None:
    pair = (np.zeros((1, 1, 3), np.uint8),) * 2
    training_pairs, held_out = images.hold_out([pair] * 33)
    assert (len(training_pairs), len(held_out)) == (1, 32)
    with pytest.raises(ValueError, match="32 pairs; 32 are held out"):
        images.hold_out([pair] * 32)


def test_psnr_of_a_known_error() -> None:
    expected = np.full((12, 12, 3), 100, np.uint8)
    assert quality.psnr(expected + np.uint8(5), expected) == pytest.approx(20 * np.log10(51))


def test_ssim_is_that_of_its_formula() -> None:
    """Wang et al. 2004, equation 13, window by window, on one place of one colour."""
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (2, 11, 11, 3), np.uint8)
    place = np.arange(11) - 5
    gauss = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    weights = (gauss / gauss.sum())[..., None]
    mean_x, mean_y = ((weights * image).sum((0, 1)) for image in (x, y))
    variances = [(weights * (z - m) ** 2.0).sum((0, 1)) for z, m in ((x, mean_x), (y, mean_y))]
    covariance = (weights * (x - mean_x) * (y - mean_y)).sum((0, 1))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (sum(variances) + c2)
    assert quality.ssim(x, y) == pytest.approx(np.mean(luminance * structure), abs=1e-6)


def test_measures_are_means_over_images_without_the_border() -> None:
    high = np.full((30, 30, 3), 100, np.uint8)
    worse = high + np.uint8(10)
    worse[:3] = 0

    def run(planes: images.Planes) -> images.Planes:
        return planes + np.float32(5 / 255)

    found = quality.measure(run, [(high, high), (worse, high)], shave=3)
    expected = np.mean([20 * np.log10(255 / error) for error in (5, 15)])
    assert found["psnr"] == pytest.approx(expected)
    assert 0.9 < found["ssim"] < 1


class Scaled(nn.Module):
    """Multiplies by a number that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, affine=False)
        self.factor = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.norm(x)


def test_the_loop_learns_and_statistics_are_those_of_64_batches() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn() -> training.Batches:
        while True:
            x = 5 + torch.randn(4, 3, 8, 8, generator=generator)
            yield x, x - 5

    model = Scaled()
    training.train(model, drawn(), lambda m, x, y: (m(x) - y).square().mean(), 60, 0.3)
    assert model.factor.item() == pytest.approx(1, abs=0.15)
    assert not model.training
    training.recompute_statistics(model, drawn())
    torch.testing.assert_close(model.norm.running_mean, torch.full((3,), 5.0), atol=0.03, rtol=0)
    assert model.norm.num_batches_tracked == 64


def test_the_table_and_what_it_requires() -> None:
    good = {"psnr": 30.0, "ssim": 0.9}

    def system(qat: float, differing: int) -> dict[str, object]:
        found = {
            "ptq": {"psnr": 29.9, "ssim": 0.9},
            "tuned-ptq": good,
            "qat": {**good, "psnr": qat},
        }
        backends = {"tflite": {**found, "differing": differing, "compared": 1000}}
        return {"float": good, "tuned": good, "backends": backends}

    results = {"sisr_x3": system(29.8, 0), "qatie": system(29.95, 2), "qdr": system(29.9, 0)}
    assert report.failures(results) == [
        "sisr_x3, tflite: QAT gives less than PTQ",
        "sisr_x3, tflite: INT8 is more than 0.15 dB below float",
        "qatie, tflite: 2 integers differ",
    ]
    blocks = dict(zip(report.PAPERS_DROPS, (28.0, 29.0, 28.5), strict=True))
    results["ablation"] = {
        name: {"float": good, "ptq": {**good, "psnr": psnr}} for name, psnr in blocks.items()
    }
    text = report.page(results)
    assert "| image enhancement | tflite | 30.000 / 0.9000 | 29.900 / 0.9000 |" in text
    assert text.index("| RepConv |") < text.index("| RepDW |") < text.index("| MobileOne |")
