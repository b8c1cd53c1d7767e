"""The super-resolution example: its images, its committed weights and its training script."""

import importlib.util
import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import fuseq.qat

EXAMPLE = Path(__file__).parents[2] / "examples" / "sisr_x3"
# In dB; the committed weights measured 3.75, less a little for the arithmetic of other machines.
MARGIN = 3.5


def load(name: str) -> ModuleType:
    """Execute a file of the example as `fuseq` does, by its path."""
    spec = importlib.util.spec_from_file_location(f"tested_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


data = load("data")
model = load("model")


def test_dead_leaves_depend_on_the_seed_only() -> None:
    first = data.dead_leaves(7, size=96)
    assert first.shape == (96, 96, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, data.dead_leaves(7, size=96))
    assert np.any(first != data.dead_leaves(8, size=96))


def test_leaf_radii_follow_the_inverse_cube_law() -> None:
    radii = data._radii(np.random.default_rng(0), 200_000)
    assert radii.min() >= data.SMALLEST_RADIUS
    assert radii.max() <= data.LARGEST_RADIUS
    # P(r > 2 r_min) = (1/4 - q) / (1 - q) with q = (r_min / r_max)^2.
    q = (data.SMALLEST_RADIUS / data.LARGEST_RADIUS) ** 2
    assert np.mean(radii > 2 * data.SMALLEST_RADIUS) == pytest.approx(
        (0.25 - q) / (1 - q), abs=0.005
    )


def test_dead_leaves_have_the_spectrum_of_photographs() -> None:
    """Photographs have power 1/f^2 to 1/f^3; white noise would have slope 0."""
    size = 192
    window = np.outer(np.hanning(size), np.hanning(size))
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    power = np.zeros((size, size))
    for seed in range(8):
        gray = data.dead_leaves(seed, size).mean(axis=2)
        power += np.abs(np.fft.fft2(window * (gray - gray.mean()))) ** 2
    edges = np.geomspace(4 / size, 0.35, 9)
    bands = [(frequency >= low) & (frequency < high) for low, high in pairwise(edges)]
    slope = np.polyfit(
        np.log([frequency[band].mean() for band in bands]),
        np.log([power[band].mean() for band in bands]),
        1,
    )[0]
    assert -3.2 < slope < -1.8


def test_reduction_keeps_the_mean_and_antialiases() -> None:
    stripes = np.zeros((30, 48, 3), np.uint8)
    stripes[:, ::2] = 200
    low = data.downscale(stripes)
    assert low.shape == (10, 16, 3)
    # Stripes of one pixel cannot be seen at a third of the size: only their mean remains.
    assert np.abs(low[:, 2:-2].astype(int) - 100).max() <= 12
    assert data.bicubic(low).shape == (30, 48, 3)


def test_psnr_of_a_known_error_without_the_border() -> None:
    expected = np.full((12, 12, 3), 100, np.uint8)
    actual = expected + np.uint8(5)
    actual[:3] = 0
    assert data.psnr(actual, expected) == pytest.approx(20 * np.log10(255 / 5))
    assert data.psnr(expected, expected) == float("inf")


@pytest.fixture
def div2k(tmp_path: Path) -> Path:
    """A folder in DIV2K layout: 0001 has a low image, 0002 (62x50) has none."""
    high, low = tmp_path / "DIV2K_train_HR", tmp_path / "DIV2K_train_LR_bicubic" / "X3"
    high.mkdir()
    low.mkdir(parents=True)
    Image.fromarray(data.dead_leaves(1, 96)).save(high / "0001.png")
    Image.new("RGB", (32, 32), (1, 2, 3)).save(low / "0001x3.png")
    Image.fromarray(data.dead_leaves(2, 62)[:50]).save(high / "0002.png")
    return tmp_path


def test_div2k_folder(div2k: Path) -> None:
    (low, high), (made, cropped) = data.div2k_pairs(div2k)
    np.testing.assert_array_equal(high, data.dead_leaves(1, 96))
    assert np.all(low == (1, 2, 3))
    np.testing.assert_array_equal(cropped, data.dead_leaves(2, 62)[:48, :60])
    np.testing.assert_array_equal(made, data.downscale(cropped))


def test_div2k_folder_that_is_wrong(div2k: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    Image.new("RGB", (31, 32)).save(div2k / "DIV2K_train_LR_bicubic" / "X3" / "0001x3.png")
    with pytest.raises(ValueError, match=r"0001x3\.png is 31x32, expected 32x32"):
        list(data.div2k_pairs(div2k))
    with pytest.raises(FileNotFoundError, match="no PNG file in"):
        list(data.div2k_pairs(tmp_path_factory.mktemp("empty")))


def test_patches_of_a_batch_show_the_same_place() -> None:
    pairs = list(data.generated_pairs(range(3), size=96))
    low, high = data.batch(pairs, count=6, size=16, rng=np.random.default_rng(0))
    assert low.shape == (6, 3, 16, 16)
    assert high.shape == (6, 3, 48, 48)
    for small, large in zip(low, high, strict=True):
        reduced = large.reshape(3, 16, 3, 16, 3).mean(axis=(2, 4))
        # The mean of a cell is close to its bicubic reduction, and far from any other place.
        assert np.mean((reduced - small) ** 2) < 0.2 * np.var(small)


def test_network_has_the_size_of_the_paper() -> None:
    network = model.get_model(pretrained=False)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 42
    assert sum(p.numel() for p in network.parameters()) == 314_875
    output = network(*model.example_inputs())
    assert output.shape == (1, 3, 192, 192)


def test_calibration_images_are_the_same_each_time() -> None:
    images = list(model.calibration_data())
    assert len(images) == 32
    assert all(image.shape == (1, 3, 64, 64) for image in images)
    assert 0 <= min(image.min() for image in images) < max(image.max() for image in images) <= 1
    torch.testing.assert_close(next(iter(model.calibration_data())), images[0], rtol=0, atol=0)


def test_preprocess() -> None:
    planes = model.preprocess(Image.new("RGBA", (5, 4), (255, 51, 0, 9)))
    assert planes.shape == (3, 4, 5)
    assert planes[:, 0, 0].tolist() == pytest.approx([1.0, 0.2, 0.0])


def test_committed_weights_beat_bicubic() -> None:
    assert (EXAMPLE / "weights.safetensors").stat().st_size < 1_000_000
    network = model.get_model()
    with torch.inference_mode():
        result = model.evaluate(lambda image: network(torch.from_numpy(image)).numpy())
    assert result["psnr"] > result["psnr_bicubic"] + MARGIN


def test_evaluation_measures_what_it_is_given() -> None:
    """Bicubic interpolation handed in as the network scores what bicubic scores."""

    def run(planes: NDArray[np.float32]) -> NDArray[np.float32]:
        low = data.to_pixels(planes[0].transpose(1, 2, 0))
        return np.asarray(data.to_planes(data.bicubic(low))[None])

    result = model.evaluate(run)
    assert result["psnr"] == pytest.approx(result["psnr_bicubic"], abs=1e-9)


@pytest.mark.parametrize("source", ["dead leaves", "folder"])
def test_training_script_runs(source: str, tmp_path: Path, div2k: Path) -> None:
    out = tmp_path / "weights.safetensors"
    if source == "folder":
        Image.fromarray(data.dead_leaves(3, 192)).save(div2k / "DIV2K_train_HR" / "0001.png")
        Image.fromarray(data.dead_leaves(4, 192)).save(div2k / "DIV2K_train_HR" / "0002.png")
        (div2k / "DIV2K_train_LR_bicubic" / "X3" / "0001x3.png").unlink()
    command = [sys.executable, str(EXAMPLE / "train.py"), "--steps", "2", "--pool", "2"]
    command += ["--batch", "1", "--patch", "16", "--out", str(out)]
    command += ["--data", str(div2k)] if source == "folder" else []
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "step 2/2" in finished.stdout
    assert "bicubic" in finished.stdout
    network = model.SuperResolution()
    network.load_state_dict(model.load_file(out))


def test_training_in_int8_goes_through_its_stages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "data", data)
    training = load("qat")
    monkeypatch.setattr(training, "BATCHES", 2)
    monkeypatch.setattr(training, "IMAGES", 2)
    images = list(islice(model.calibration_data(), 8))
    network = fuseq.qat.prepare(model.get_model(), images[0], calibration=images)
    before = network.table().integers
    training.fit(network, fuseq.qat.Curriculum(network, observe=1, tune=1, freeze=1))
    after = network.table().integers
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == [
        "observe",
        "tune",
        "freeze",
    ]
    monkeypatch.setattr(model, "HELD_OUT_SEEDS", range(90_000, 90_004))
    network.eval()
    result = model.evaluate(lambda image: network(torch.from_numpy(image)).numpy())
    assert result["psnr"] > result["psnr_bicubic"] + 3
