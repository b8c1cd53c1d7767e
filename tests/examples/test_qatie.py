"""The image enhancement example: its structure against the paper's, its images, its commands."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fuseq.user_code import load_function
from tests.examples.scripts import EXAMPLES, results, run

EXAMPLE = EXAMPLES / "qatie" / "model.py"
model, get_model = load_function(str(EXAMPLE), "get_model")
# In dB; the committed weights measured more, a little is left for other machines' arithmetic.
MARGIN = 8.0
losses, enhancement_loss = load_function(str(EXAMPLE.with_name("losses.py")), "enhancement_loss")


def test_network_has_the_size_of_the_paper() -> None:
    network = get_model(channels=32)
    assert sum(p.numel() for p in network.parameters()) == 915_331
    kinds = [type(m) for m in network.modules()]
    assert (kinds.count(nn.Conv2d), kinds.count(nn.InstanceNorm2d)) == (35, 5)


@pytest.mark.parametrize("size", [(16, 16), (100, 100), (37, 50)])
def test_any_size_is_kept_in_range(size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size)
    with torch.inference_mode():
        y = model.QATIE(8).eval()(x)
    assert y.shape == x.shape
    assert 0 <= y.min() <= y.max() <= 1


def test_gate_is_the_product_of_what_goes_on_as_skip() -> None:
    gate, left, right = model.GatedDown(3, 8)(torch.rand(1, 3, 9, 12))
    assert gate.shape == left.shape == right.shape == (1, 8, 5, 6)
    assert torch.equal(gate, left * right)
    assert max(left.abs().max(), right.abs().max()) < 1


def test_network_and_images_are_the_same_each_time() -> None:
    (x,) = model.example_inputs()
    with torch.inference_mode():
        assert torch.equal(get_model()(x), get_model()(x))
        assert torch.equal(get_model(channels=8)(x), get_model(channels=8)(x))
    images = list(model.calibration_data())
    assert len(images) == 16
    assert torch.equal(images[0], x)
    assert all(image.shape == (1, 3, 96, 96) for image in images)
    assert all(0 <= image.min() < image.max() <= 1 for image in images)


def test_preprocess() -> None:
    planes = model.preprocess(Image.new("RGBA", (5, 4), (255, 51, 0, 9)))
    assert planes.shape == (3, 4, 5)
    assert planes[:, 0, 0].tolist() == pytest.approx([1.0, 0.2, 0.0])


def test_evaluation_measures_what_it_is_given() -> None:
    given = model.evaluate(lambda x: x)
    assert given["psnr"] == given["psnr_phone"]
    cameras = iter([camera for _, camera in model.pairs(model.HELD_OUT_SEEDS)])
    shifted = model.evaluate(lambda _: (next(cameras) + np.float32(2 / 255))[None])
    assert shifted["psnr"] == pytest.approx(20 * np.log10(255 / 2), abs=0.1)


@pytest.mark.parametrize("command", ["lower", "fuse"])
def test_command(command: str, tmp_path: Path) -> None:
    arguments = [command, str(EXAMPLE), "--input", "1x3x48x56", "--json"]
    if command == "lower":
        arguments += ["-b", "onnx", "-o", str(tmp_path / "out"), "--calib", "random"]
    done = subprocess.run(
        [sys.executable, "-m", "fuseq", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    if command == "fuse":
        assert document["ops"]["conv_after"] == 35
        return
    assert document["passed"]
    parity = [check["metrics"] for check in document["checks"] if check["class"] == "parity"]
    assert [metrics["differing"] for metrics in parity] == [0, 0, 0]
    assert sum(metrics["total"] for metrics in parity) > 1_000_000
    assert not any(metrics.get("float_values") for metrics in parity)
    manifest = json.loads((tmp_path / "out" / "fuseq.json").read_text())
    assert manifest["float_islands"] == []


def test_committed_weights_enhance() -> None:
    assert (EXAMPLE.with_name("weights.safetensors")).stat().st_size < 1_000_000
    network = get_model()
    with torch.inference_mode():
        found = model.evaluate(lambda x: network(torch.from_numpy(x)).numpy())
    assert found["psnr"] > found["psnr_phone"] + MARGIN


def test_the_loss_of_ssim_is_the_measure() -> None:
    torch.manual_seed(0)
    x, y = torch.randint(0, 256, (2, 1, 3, 20, 30))
    pixels = (z[0].permute(1, 2, 0).numpy().astype(np.uint8) for z in (x, y))
    _, ssim = load_function(str(EXAMPLES / "common" / "quality.py"), "ssim")
    assert float(losses.ssim(x / 255, y / 255)) == pytest.approx(ssim(*pixels), abs=1e-5)
    assert float(losses.ssim(x / 255, x / 255)) == pytest.approx(1)


def test_losses_of_known_errors() -> None:
    target = torch.full((2, 3, 16, 16), 0.5)
    gray = target + 0.01  # 219 of the 255 levels of luma, 10 log10 (0.01 * 219 / 255)^-2
    luma = 20 * np.log10(255 / (219 * 0.01))
    assert float(losses.psnr_loss(gray, target)) == pytest.approx((50 - luma) / 100, abs=1e-3)
    assert float(losses.outlier_loss(gray, target)) < 1e-3  # an error that is everywhere is none
    spot = target.clone()
    spot[:, :, 3, 4] += 0.5
    assert float(losses.outlier_loss(spot, target)) == pytest.approx(0.5 / 256, rel=1e-3)
    weighed = [losses.psnr_loss, lambda y, t: 1 - losses.ssim(y, t), losses.outlier_loss]
    total = sum(w * f(spot, target) for w, f in zip((2, 100, 1), weighed, strict=True))
    assert float(enhancement_loss(spot, target)) == pytest.approx(float(total))


def test_training_by_two_ranks(tmp_path: Path) -> None:
    options = ("--channels", "8", "--backends", "tflite")
    said = run("qatie/train.py", tmp_path, *options, ranks=2)
    assert [line for line in said.splitlines() if line.startswith("training")] == [
        "training in float",
        "training on in float",
        "training in the integers of tflite",
    ]
    results(tmp_path, "tflite")
    model.QATIE(8).load_state_dict(model.load_file(tmp_path / "weights.safetensors"))


def test_training_on_photographs(tmp_path: Path) -> None:
    folders = tmp_path / "phone", tmp_path / "camera"
    for folder in folders:
        folder.mkdir()
    for number, pair in enumerate(model.photograph_pairs(range(4))):
        for folder, pixels in zip(folders, pair, strict=True):
            Image.fromarray(pixels).save(folder / f"{number}.png")
    data = (
        "--data",
        *map(str, folders),
        "--weights",
        str(EXAMPLE.with_name("weights.safetensors")),
    )
    run("qatie/train.py", tmp_path / "out", *data, "--backends", "onnx")
    assert results(tmp_path / "out", "onnx")["float"]["psnr"] > 20
