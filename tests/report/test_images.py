"""What is shown as an image, how its reals become grey values, and differences."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from fuseq.report.images import Picture, is_image, picture, span_of, strip

RANDOM = np.random.default_rng(0)


def pixels(shown: Picture) -> np.ndarray:
    kind, _, encoded = shown.uri.partition(",")
    assert kind == "data:image/png;base64"
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))
    assert image.shape[:2] == (shown.height, shown.width)
    return image


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 3, 16, 16), True),
        ((2, 1, 8, 40), True),
        ((1, 64, 16, 16), False),
        ((1, 3, 1, 1), False),
        ((1, 1000), False),
    ],
)
def test_images_are_grey_or_rgb_and_large_enough(shape, expected):
    assert is_image(np.zeros(shape, np.float32)) is expected


@pytest.mark.parametrize(
    ("low", "high", "span"),
    [
        (0.0, 1.0, (0.0, 1.0)),
        (-0.1, 1.15, (0.0, 1.0)),
        (-1.0, 0.9, (-1.0, 1.0)),
        (0.0, 255.0, (0.0, 255.0)),
    ],
)
def test_the_usual_spans_are_known(low, high, span):
    assert span_of(RANDOM.uniform(low, high, (1, 3, 20, 20))) == span


def test_any_other_span_is_its_own():
    values = RANDOM.uniform(-2.1, 2.6, (1, 3, 20, 20))
    assert span_of(values) == (values.min(), values.max())
    assert span_of(np.zeros((1, 3, 8, 8)))[1] > 0


def test_pixels_are_the_values():
    values = RANDOM.uniform(0, 1, (2, 3, 9, 11)).astype(np.float32)
    shown = picture(values, (0.0, 1.0))
    assert np.array_equal(pixels(shown), np.rint(values[0] * 255).transpose(1, 2, 0))
    assert pixels(picture(values[:, :1], (0.0, 1.0))).shape == (9, 11)


def test_a_difference_is_grey_where_there_is_none_and_eight_times_as_large():
    real = np.full((1, 3, 10, 10), 0.5, np.float32)
    real[0, :, :5], real[0, :, 5:] = 0.2, 0.9
    shipped = real.copy()
    shipped[0, 0, 0, 0] += 0.02
    shown = strip("y", real, shipped)
    assert shown.difference is not None
    difference = pixels(shown.difference)
    assert difference[0, 0].tolist() == [round((0.5 + 8 * 0.02) * 255), 128, 128]
    assert difference[1, 1].tolist() == [128, 128, 128]
    assert shown.psnr_db == pytest.approx(10 * np.log10(300 / 0.02**2), abs=0.01)


def test_equal_images_have_no_psnr():
    real = RANDOM.uniform(0, 1, (1, 3, 10, 10)).astype(np.float32)
    assert strip("y", real, real).psnr_db is None
    assert strip("y", real, None).shipped is None


def test_values_that_are_not_finite_are_drawn():
    values = RANDOM.uniform(0, 1, (1, 3, 10, 10))
    values[0, 0, 0, 0] = np.nan
    assert pixels(picture(values, (0.0, 1.0)))[0, 0, 0] == 0
