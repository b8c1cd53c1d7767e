"""The tflite backend as users meet it: its interface, its options, real networks, its absence."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fuseq
from fuseq.backends.tflite import TfliteBackend
from fuseq.backends.tflite.runner import LiteRtRunner
from fuseq.quant.executor import execute
from tests.backends.tflite_files import operators

NETWORKS = {
    "asymmetric": 0, "decoder": 0, "diverse_branch": 0, "fastvit": 0, "gated": 0, "mobilenet_v2": 0,
    "mobilenet_v3": 0, "mobileone": 0, "plain_usr": 0, "qatie": 0, "qdr": 0, "rep_unet": 0,
    "replknet": 0, "repsr": 0, "repvgg": 0, "resnet": 0, "sesr": 0, "shufflenet_v2": 4, "span": 0,
    "squeezenet": 0, "unet": 0,
}  # fmt: skip
"""Transposes in the file: only a channel shuffle needs them."""


class Small(nn.Module):
    """Two branches, a stride, a skip, a pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        return F.pixel_shuffle(self.head(torch.relu(self.left(y) + self.right(y)) + y), 2)


def images(count: int = 3, side: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(1, 3, side, side, generator=generator) for _ in range(count)]


def lowered(out: Path, **options: Any) -> fuseq.Bundle:
    torch.manual_seed(0)
    data = images()
    bundle = fuseq.lower(
        Small().eval(), data[0], backend=TfliteBackend(**options), out=out, calibration=data
    )
    assert bundle.result is not None
    bundle.result.raise_for_status()
    return bundle


def file_of(bundle: fuseq.Bundle) -> Path:
    file = bundle.file("int8")
    assert file is not None
    return file


@pytest.mark.parametrize("name", NETWORKS)
def test_no_integer_is_apart(name: str, tmp_path: Path) -> None:
    model = importlib.import_module(f"tests.networks.{name}").small().eval()
    data = images(side=64)
    bundle = fuseq.lower(model, data[0], backend="tflite", out=tmp_path / "b", calibration=data)
    assert bundle.result is not None
    bundle.result.raise_for_status()
    parity = [check for check in bundle.result.checks if check.id.startswith("parity-")]
    assert [check.pair.split()[0] for check in parity] == ["xnnpack", "tflite-ref"]
    assert [check.metrics["differing"] for check in parity] == [0, 0]
    assert operators(file_of(bundle)).count("TRANSPOSE") == NETWORKS[name]


def test_the_student_is_twelve_operators(tmp_path: Path) -> None:
    sys.path.insert(0, "examples/sisr_x3")
    try:
        model = importlib.import_module("examples.sisr_x3.model").get_model()
    finally:
        sys.path.remove("examples/sisr_x3")
    data = images(side=64)
    bundle = fuseq.lower(
        model, data[0], backend="tflite", out=tmp_path / "b", calibration=data, check=False
    )
    assert operators(file_of(bundle)) == [*["CONV_2D"] * 9, "ADD", "CONV_2D", "DEPTH_TO_SPACE"]


@pytest.mark.parametrize("io", ["int8", "uint8", "float"])
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_every_interface_gives_the_same_reals(io: str, layout: str, tmp_path: Path) -> None:
    bundle = lowered(tmp_path / "out", io=io, layout=layout)
    (given,), (taken,) = bundle.manifest["inputs"], bundle.manifest["outputs"]
    dtype = "float32" if io == "float" else io
    assert [given["dtype"], taken["dtype"]] == [dtype, dtype]
    assert [given["layout"], taken["layout"]] == [layout.upper()] * 2
    shapes = {"nhwc": [1, 32, 32, 3], "nchw": [1, 3, 32, 32]}
    assert [given["shape"], taken["shape"]] == [shapes[layout]] * 2
    assert bundle.program is not None
    x = images(1)[0]
    result = fuseq.check(bundle.program, tmp_path / "out", inputs=[(x.numpy(),)])
    result.raise_for_status()
    assert operators(file_of(bundle)).count("TRANSPOSE") == 2 * (layout == "nchw")


@pytest.mark.parametrize("io", ["int8", "uint8", "float"])
def test_a_file_without_its_bundle_says_its_grids(io: str, tmp_path: Path) -> None:
    bundle = lowered(tmp_path / "out", io=io)
    torch.manual_seed(0)
    result = fuseq.check(Small().eval(), file_of(bundle), [(x.numpy(),) for x in images()])
    assert [check.kind for check in result.checks] == ["fidelity"]
    assert min(check.metrics["sqnr_db"] for check in result.checks) > 25


def test_the_interpreter_alone_gives_the_integers_of_the_manifest(tmp_path: Path) -> None:
    """As an app does it: quantize with the manifest's grid, run, compare."""
    from ai_edge_litert.interpreter import Interpreter

    bundle = lowered(tmp_path / "out")
    (given,) = bundle.manifest["inputs"]
    x = images(1)[0]
    q = np.round(x.permute(0, 2, 3, 1).numpy() / np.float32(given["grid"]["scale"]))
    q = np.clip(q + given["grid"]["zero_point"], -128, 127).astype(np.int8)
    runner = Interpreter(str(file_of(bundle))).get_signature_runner()
    (found,) = runner(**{given["name"]: q}).values()
    assert bundle.program is not None
    (expected,) = (
        execute(bundle.program, (x,)).integers[node.name] for node in bundle.program.outputs()
    )
    assert np.array_equal(found.transpose(0, 3, 1, 2), expected.numpy())


def test_an_open_size_is_resized_by_the_caller(tmp_path: Path) -> None:
    bundle = lowered(tmp_path / "out", resizable=True)
    runner = LiteRtRunner(file_of(bundle))
    assert runner.shapes[0][1:] == (3, None, None)
    assert bundle.program is not None
    grid = bundle.program.quantization.grids["x"]  # type: ignore[union-attr]
    (output,) = bundle.program.outputs()
    for side in (32, 48, 20):
        x = images(1, side)[0]
        (found,) = runner(grid.quantize(x).numpy().astype(np.int8))
        assert found.shape == (1, 3, side, side)
        assert np.array_equal(found, execute(bundle.program, (x,)).integers[output.name].numpy())


def test_a_size_in_the_file_is_not_open(tmp_path: Path) -> None:
    def doubled() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2, mode="bilinear"))

    backend = TfliteBackend(resizable=True)
    with pytest.raises(fuseq.FuseqError, match="FQ501") as caught:
        fuseq.lower(
            doubled().eval(), images()[0], backend=backend, out=tmp_path / "b", calibration=images()
        )
    assert "is a number in the file" in str(caught.value)


def test_threads_change_nothing(tmp_path: Path) -> None:
    bundle = lowered(tmp_path / "out", io="float")
    file, x = file_of(bundle), images(1)[0].numpy()
    one, two = (LiteRtRunner(file, threads=n)(x)[0] for n in (1, 2))
    assert np.array_equal(one, two)


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (lowered(tmp_path / name) for name in "ab")
    for kind in ("int8", "float"):
        one, two = first.file(kind), second.file(kind)
        assert one is not None
        assert two is not None
        assert one.read_bytes() == two.read_bytes()
    assert str(tmp_path).encode() not in file_of(first).read_bytes()


def test_a_file_of_somebody_else_is_run_as_it_is(tmp_path: Path) -> None:
    from fuseq.backends.tflite.file import packed, unpacked

    model = unpacked(file_of(lowered(tmp_path / "out")).read_bytes())
    model.metadata = None
    (tmp_path / "plain.tflite").write_bytes(packed(model))
    runner = LiteRtRunner(tmp_path / "plain.tflite")
    assert runner.shapes == ((1, 32, 32, 3),)
    assert runner(np.zeros((1, 32, 32, 3), np.int8))[0].shape == (1, 32, 32, 3)
    assert runner.parameters() == {}


def test_what_is_no_tflite_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad.tflite").write_bytes(b"TFL3" * 9)
    with pytest.raises(fuseq.FuseqError, match="FQ013") as caught:
        LiteRtRunner(tmp_path / "bad.tflite")
    assert "LiteRT cannot load bad.tflite" in str(caught.value)


def test_a_program_for_another_target_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = fuseq.quantize(Small().eval(), images()[0], target="onnx", calibration=images())
    with pytest.raises(fuseq.FuseqError, match="FQ405") as caught:
        fuseq.lower(program, backend="tflite", out=tmp_path / "b")
    assert caught.value.fix == "target='tflite' in prepare or quantize"


WITHOUT = """
import importlib.metadata, sys
real = importlib.metadata.distribution
def distribution(name):
    if name == "ai-edge-litert":
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)
importlib.metadata.distribution = distribution
from fuseq.cli import main
sys.argv[0] = "fuseq"
sys.exit(main())
"""


def without_extra(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments], capture_output=True, text=True, check=False
    )


def test_without_the_extra_the_line_to_install_is_said(tmp_path: Path) -> None:
    listed = without_extra("backends", "--json")
    found = {entry["name"]: entry for entry in json.loads(listed.stdout)["backends"]}
    assert found["tflite"]["missing"] == ["ai-edge-litert"]
    assert "pip install 'fuseq[tflite]'" in " ".join(without_extra("backends").stdout.split())
    refused = without_extra(
        "lower", "examples/sisr_x3/model.py", "-b", "tflite", "-o", str(tmp_path / "b")
    )
    assert refused.returncode == 4
    assert "FQ502" in refused.stderr
    assert "pip install 'fuseq[tflite]'" in refused.stderr
    assert not (tmp_path / "b").exists()
