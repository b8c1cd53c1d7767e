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

EXAMPLE = Path(__file__).parents[2] / "examples" / "qatie" / "model.py"
model, get_model = load_function(str(EXAMPLE), "get_model")


def test_network_has_the_size_of_the_paper() -> None:
    network = get_model()
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
    shifted = model.evaluate(lambda _: (next(cameras) + np.float32(0.01))[None])
    assert shifted["psnr"] == pytest.approx(40, abs=0.01)


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
