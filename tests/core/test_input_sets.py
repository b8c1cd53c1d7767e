"""Generated inputs are what their names say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fuseq
from fuseq.equivalence.input_sets import GENERATED, Batch, input_set


def made(name: str, seed: int = 0, size: int = 64, low: float = 0, high: float = 1) -> list[Batch]:
    return input_set(name, [(1, 3, size, size)], [(low, high)], samples=4, seed=seed)


@pytest.mark.parametrize("name", list(GENERATED))
def test_seeded_and_in_range(name: str) -> None:
    batches = made(name, low=-2, high=3)
    assert len(batches) == 4
    for (x,), (again,) in zip(batches, made(name, low=-2, high=3), strict=True):
        assert x.shape == (1, 3, 64, 64)
        assert x.dtype == np.float32
        assert np.array_equal(x, again)
    low, high = (edge([edge(x) for (x,) in batches]) for edge in (min_of, max_of))
    assert (low, high) == (-2, 3)
    other = [x for (x,) in made(name, seed=1, low=-2, high=3)]
    differs = [not np.array_equal(x, y) for (x,), y in zip(batches, other, strict=True)]
    assert all(differs) == (name != "constant")


def min_of(values: object) -> float:
    return float(np.min(values))  # type: ignore[call-overload]


def max_of(values: object) -> float:
    return float(np.max(values))  # type: ignore[call-overload]


def slope(images: list[Batch]) -> float:
    """Exponent with which power falls over frequency."""
    power = np.mean([np.abs(np.fft.fft2(x[0, 0] - x[0, 0].mean())) ** 2 for (x,) in images], 0)
    size = len(power)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :])
    chosen = (frequency > 2 / size) & (frequency < 0.4)
    return float(np.polyfit(np.log(frequency[chosen]), np.log(power[chosen]), 1)[0])


def test_spectra() -> None:
    assert slope(made("natural", size=128)) == pytest.approx(-2, abs=0.2)
    assert slope(made("range", size=128)) == pytest.approx(0, abs=0.2)


def test_channels_of_a_natural_image_go_together() -> None:
    for (x,) in made("natural"):
        together = np.corrcoef(x[0].reshape(3, -1))
        assert together[np.triu_indices(3, 1)].mean() > 0.3


def test_edges_have_two_values_and_constants_one() -> None:
    assert all(set(np.unique(x)) <= {0, 1} for (x,) in made("edges"))
    assert [np.unique(x).tolist() for (x,) in made("constant", high=3)] == [[0], [1], [2], [3]]


def test_what_is_no_image_is_uniform() -> None:
    [(x, y), _] = input_set("natural", [(2, 5), (1, 1, 9, 8)], [(0, 1)] * 2, samples=2, seed=0)
    assert (x.shape, y.shape) == ((2, 5), (1, 1, 9, 8))


def test_ranges_come_from_the_inputs_grid(tmp_path: Path) -> None:
    import torch

    x = torch.rand(1, 3, 8, 8) * 4 - 1
    out = tmp_path / "b"
    bundle = fuseq.lower(torch.nn.Conv2d(3, 2, 3), x, out=out, calibration=[x], check=False)
    from fuseq.equivalence.batches import batches_for
    from fuseq.equivalence.sides import side_of

    batches = batches_for([side_of(bundle)], "range", samples=3, seed=0)
    assert min_of([x for (x,) in batches]) == pytest.approx(-1, abs=0.1)
    assert max_of([x for (x,) in batches]) == pytest.approx(3, abs=0.1)
    plain = batches_for([side_of(bundle.path / "model.fp32.onnx")], None, samples=3, seed=0)
    assert len(plain) == 1  # the recorded inputs
