"""The restoration example: its structure, its gates, its degradations, its commands."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import fuseq
from fuseq.user_code import load_function
from tests.examples.scripts import EXAMPLES, results, run

EXAMPLE = EXAMPLES / "qdr" / "model.py"
# In dB; the committed weights measured more, a little is left for other machines' arithmetic.
MARGIN = 11.0
model, get_model = load_function(str(EXAMPLE), "get_model")


def test_structure() -> None:
    network = get_model()
    kinds = [type(m) for m in network.modules()]
    assert (kinds.count(nn.Conv2d), kinds.count(nn.BatchNorm2d)) == (31, 24)
    x = torch.rand(2, 3, 24, 36)
    with torch.inference_mode():
        assert network(x).shape == x.shape


def test_everything_below_full_size_passes_the_bottleneck_or_a_gated_skip() -> None:
    network, x, seen = get_model(), torch.rand(1, 3, 32, 48), {}

    def remember(name: str) -> None:
        network.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output: seen.update({name: output})
        )

    for name in ("bottleneck", "gate1", "gate2", "head"):
        remember(name)
    with torch.inference_mode():
        y = network(x)
    assert torch.equal(y, x + seen["head"])  # the global residual
    assert seen["bottleneck"].shape == (1, 64, 8, 12)

    def zero(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * 0

    for name in ("bottleneck", "gate1", "gate2"):
        network.get_submodule(name).register_forward_hook(zero)
    with torch.inference_mode():
        shut, other = network(x) - x, network(x / 2) - x / 2
    torch.testing.assert_close(shut, other)  # nothing of the image is left


def test_a_gate_weighs_every_place_by_what_is_around_it() -> None:
    torch.manual_seed(0)
    gate, x = model.DegradationGate(8), torch.rand(1, 8, 9, 9) + 0.5
    share = gate(x) / x
    assert 0 < share.min() < share.max() < 1
    moved = x.clone()
    moved[..., 4, 4] += 10
    changed = (gate(moved) / moved - share).abs().amax(1)[0] > 1e-6
    assert changed[4, 4]
    assert not changed[:3].any()
    assert not changed[..., 6:].any()


def test_fused_it_has_one_convolution_a_block() -> None:
    report = fuseq.fuse(get_model(), torch.rand(1, 3, 32, 32)).report
    assert report is not None
    ops = report["ops"]
    assert (ops["conv_before"], ops["conv_after"], ops["bn_after"]) == (31, 23, 0)


@pytest.mark.parametrize("kind", model.DEGRADATIONS)
def test_degradations_are_visible_and_repeat(kind: str) -> None:
    clean = np.random.default_rng(0).random((3, 64, 96)).astype(np.float32)
    first, again, other = (
        model.degrade(clean, kind, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    assert first.dtype == np.float32
    assert 0 <= first.min() < first.max() <= 1
    assert 5 < -10 * np.log10(np.mean((first - clean) ** 2)) < 25


def test_calibration_images_show_every_degradation() -> None:
    images = list(model.calibration_data())
    assert len(images) == 16
    assert all(image.shape == (1, 3, 96, 96) for image in images)
    assert torch.equal(images[0], *model.example_inputs())
    assert {seed % len(model.DEGRADATIONS) for seed in model.CALIBRATION_SEEDS} == {0, 1, 2, 3}


def test_preprocess_cuts_to_sizes_the_network_takes() -> None:
    planes = model.preprocess(Image.new("RGBA", (14, 9), (255, 51, 0, 9)))
    assert planes.shape == (3, 8, 12)
    assert planes[:, 0, 0].tolist() == pytest.approx([1.0, 0.2, 0.0])


def test_evaluation_measures_what_it_is_given() -> None:
    given = model.evaluate(lambda x: x)
    assert given["psnr"] == given["psnr_degraded"]
    cleans = iter([clean for _, clean in model.pairs(model.HELD_OUT_SEEDS)])
    shifted = model.evaluate(lambda _: (next(cleans) + np.float32(2 / 255))[None])
    assert shifted["psnr"] == pytest.approx(20 * np.log10(255 / 2), abs=0.1)


def test_lower(tmp_path: Path) -> None:
    command = ["lower", str(EXAMPLE), "--input", "1x3x48x56", "--calib", "random", "-b", "onnx"]
    done = subprocess.run(
        [sys.executable, "-m", "fuseq", *command, "-o", str(tmp_path / "out"), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["passed"]
    parity = [check["metrics"] for check in document["checks"] if check["class"] == "parity"]
    assert [metrics["differing"] for metrics in parity] == [0, 0, 0]
    assert sum(metrics["total"] for metrics in parity) > 1_000_000
    manifest = json.loads((tmp_path / "out" / "fuseq.json").read_text())
    assert (manifest["float_islands"], manifest["runtime_float_ops"]) == ([], {})


def test_committed_weights_restore() -> None:
    assert (EXAMPLE.with_name("weights.safetensors")).stat().st_size < 1_000_000
    network = get_model()
    with torch.inference_mode():
        found = model.evaluate(lambda x: network(torch.from_numpy(x)).numpy())
    assert found["psnr"] > found["psnr_degraded"] + MARGIN


def test_training_by_two_ranks(tmp_path: Path) -> None:
    said = run("qdr/train.py", tmp_path, "--backends", "tflite", ranks=2)
    assert [line for line in said.splitlines() if line.startswith("training")] == [
        "training in float",
        "training in float, with the statistics of evaluation",
        "training on in float",
        "training in the integers of tflite",
    ]
    results(tmp_path, "tflite")
    model.QDR().load_state_dict(model.load_file(tmp_path / "weights.safetensors"))


def test_training_on_photographs(tmp_path: Path) -> None:
    folders = tmp_path / "degraded", tmp_path / "clean"
    for folder in folders:
        folder.mkdir()
    for number, pair in enumerate(model.image_pairs(range(4))):
        for folder, pixels in zip(folders, pair, strict=True):
            Image.fromarray(pixels).save(folder / f"{number}.png")
    data = (
        "--data",
        *map(str, folders),
        "--weights",
        str(EXAMPLE.with_name("weights.safetensors")),
    )
    run("qdr/train.py", tmp_path / "out", *data, "--backends", "onnx")
    assert results(tmp_path / "out", "onnx")["float"]["psnr"] > 15
