"""The super-resolution example: its images, its committed weights and its training script."""

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import fuseq.qat
from tests.examples.scripts import results, run

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


@pytest.fixture
def example_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example's files import each other, as they do when one of them is a script."""
    monkeypatch.syspath_prepend(EXAMPLE)
    monkeypatch.setitem(sys.modules, "data", data)
    monkeypatch.setitem(sys.modules, "model", model)
    yield
    sys.modules.pop("teacher", None)


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
        low = data.images.to_pixels(planes[0].transpose(1, 2, 0))
        return np.asarray(data.images.to_planes(data.bicubic(low))[None])

    result = model.evaluate(run)
    assert result["psnr"] == pytest.approx(result["psnr_bicubic"], abs=1e-9)


def test_a_block_for_each_row_of_the_ablation() -> None:
    x = torch.rand(1, 3, 16, 16)
    for block, convolutions in {"MobileOne": 42, "RepConv": 18, "RepDW": 26}.items():
        network = model.SuperResolution(block=block).eval()
        assert sum(isinstance(m, nn.Conv2d) for m in network.modules()) == convolutions
        report = fuseq.fuse(network, x).report
        assert report is not None
        assert report["ops"]["conv_after"] == (18 if block == "RepDW" else 10)


def test_the_teacher_begins_as_the_student(example_path: None) -> None:
    teacher = importlib.import_module("teacher")
    student, x = model.get_model(), torch.rand(2, 3, 12, 15)
    wide = teacher.widened(student).eval()
    with torch.no_grad():
        torch.testing.assert_close(wide(x), student(x), atol=1e-5, rtol=0)
    assert sum(p.numel() for p in wide.parameters()) == 179_307


def test_the_teacher_is_better_than_the_student(example_path: None) -> None:
    teacher = importlib.import_module("teacher")
    assert (EXAMPLE / "teacher.safetensors").stat().st_size < 1_000_000

    def psnr(network: nn.Module) -> float:
        with torch.inference_mode():
            result = model.evaluate(lambda image: network(torch.from_numpy(image)).numpy())
        return float(result["psnr"])

    assert psnr(teacher.get_teacher()) > psnr(model.get_model()) + 0.02


def test_three_stages_by_two_ranks(tmp_path: Path) -> None:
    said = run(
        "sisr_x3/train.py",
        tmp_path,
        *("--fidelity-steps", "5", "--backends", "tflite"),
        ranks=2,
    )
    stages = [line for line in said.splitlines() if line.startswith(("stage", "training"))]
    assert stages == [
        "stage 1",
        "stage 2",
        "stage 3",
        "training on in float",
        "training in the integers of tflite",
    ]
    results(tmp_path, "tflite")
    for name in ("weights", "fidelity"):
        model.SuperResolution().load_state_dict(model.load_file(tmp_path / f"{name}.safetensors"))


def test_three_stages_on_photographs(tmp_path: Path, div2k: Path) -> None:
    for number in range(1, 6):
        Image.fromarray(data.dead_leaves(number, 192)).save(
            div2k / "DIV2K_train_HR" / f"{number:04}.png"
        )
    (div2k / "DIV2K_train_LR_bicubic" / "X3" / "0001x3.png").unlink()
    out, start = tmp_path / "out", EXAMPLE / "weights.safetensors"
    options = ("--data", str(div2k), "--weights", str(start), "--fidelity-steps", "5")
    said = run("sisr_x3/train.py", out, *options, "--backends", "onnx")
    assert "stage 1" not in said
    assert results(out, "onnx")["float"]["psnr"] > 20


def test_ablation(tmp_path: Path) -> None:
    run("sisr_x3/ablation.py", tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found) == list(model.BLOCKS)
    assert all(x["float"]["psnr"] > x["ptq"]["psnr"] - 0.5 for x in found.values())


def test_training_in_int8_goes_through_its_stages(
    example_path: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
