"""Bundles with a wrong file: `fuseq.check` names node and line, without the model's code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import numpy_helper

import fuseq
from fuseq.backends.tflite.file import packed, unpacked
from fuseq.bundle import MANIFEST, Bundle, read_bundle, sha256
from fuseq.equivalence.limits import Limits
from fuseq.pass_spec import parse_backend
from fuseq.target import load_target

MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x):
        y = torch.relu(self.first(x))  # line 13
        return self.second(y)  # line 14


def get_model():
    torch.manual_seed(0)
    return Net()


def example_inputs():
    return (torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0)),)
"""


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One for each backend; the model's file is then deleted."""
    place = tmp_path_factory.mktemp("bundles")
    model = place / "model.py"
    model.write_text(MODEL)
    target = load_target(str(model))
    x = target.example_inputs
    made = {
        name: fuseq.lower(target.model, x, backend=name, out=place / name, calibration=[x[0]]).path
        for name in ("onnx", "tflite", "qnn")
    }
    model.unlink()
    return made


def copied(bundle: Path, place: Path) -> Bundle:
    shutil.copytree(bundle, place)
    return read_bundle(place)


def resealed(bundle: Bundle) -> Path:
    """A bundle whose manifest agrees with its files again, as after a wrong build."""
    manifest = json.loads((bundle.path / MANIFEST).read_text())
    for entry in manifest["files"]:
        entry["sha256"] = sha256(bundle.path / entry["path"])
    (bundle.path / MANIFEST).write_text(json.dumps(manifest))
    return bundle.path


def edit_onnx(file: Path, name: str, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change a constant of a file."""
    model = onnx.load(file)
    [found] = [tensor for tensor in model.graph.initializer if tensor.name == name]
    found.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(found)), name))
    onnx.save(model, file)


def edit_tflite(file: Path, name: str, factor: float) -> None:
    """Change the scales of a tensor of a file."""
    model = unpacked(file.read_bytes())
    [found] = [t for t in model.subgraphs[0].tensors if t.name.decode() == name]
    found.quantization.scale = np.asarray(found.quantization.scale, np.float32) * factor
    file.write_bytes(packed(model))


def scale_of(file: Path, name: str) -> str:
    """The constant that holds the scale of a node's quantizer."""
    [node] = [n for n in onnx.load(file).graph.node if n.name == name]
    return str(node.input[1])


@pytest.mark.parametrize("backend", ["onnx", "tflite", "qnn"])
def test_a_good_bundle_passes_on_every_runtime(backend: str, bundles: dict[str, Path]) -> None:
    result = fuseq.check(bundles[backend])
    result.raise_for_status()
    ids = [check.id for check in result.checks]
    assert ids[:2] == ["golden", "table"]
    assert ids[-1] == "float-file"
    parities = [check for check in result.checks if check.id.startswith("parity-")]
    assert len(parities) == (2 if backend == "tflite" else 1)
    assert result.first_divergence is None
    # The backend's own runner, not the one of the file's ending.
    assert ("emitted" in result.checks[0].note) == (backend == "qnn")


@pytest.mark.parametrize("backend", ["onnx", "tflite", "qnn"])
def test_a_wrong_scale_is_found_in_the_int8_file(
    backend: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    bundle = copied(bundles[backend], tmp_path / "wrong")
    file = bundle.file("int8")
    assert file is not None
    if backend == "tflite":
        edit_tflite(file, "second.weight", 1.1)
    else:
        edit_onnx(file, scale_of(file, "second.weight.dequantized"), lambda s: s * np.float32(1.1))
    result = fuseq.check(resealed(bundle))
    assert not result.passed
    assert result.first_divergence is not None
    assert result.first_divergence.node == "second"
    assert result.first_divergence.source == "model.py:14"


@pytest.mark.parametrize("backend", ["onnx", "tflite"])
def test_a_wrong_weight_is_found_in_the_float_file(
    backend: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    bundle = copied(bundles[backend], tmp_path / "wrong")
    file = bundle.file("float")
    assert file is not None
    if backend == "onnx":
        edit_onnx(file, "first.weight", lambda w: w * np.float32(1.001))
    else:
        model = unpacked(file.read_bytes())
        [found] = [t for t in model.subgraphs[0].tensors if t.name.decode() == "first.weight"]
        assert found.type == schema.TensorType.FLOAT32
        data = np.asarray(model.buffers[found.buffer].data, np.uint8).view(np.float32)
        model.buffers[found.buffer].data = (data * np.float32(1.001)).view(np.uint8)
        file.write_bytes(packed(model))
    result = fuseq.check(resealed(bundle))
    assert [check.id for check in result.checks if not check.passed] == ["float-file"]
    assert result.first_divergence is not None
    assert result.first_divergence.node in ("first", "relu")  # a runtime may fuse the two
    assert result.first_divergence.source == "model.py:13"


def test_a_changed_file_fails_and_is_named(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = copied(bundles["onnx"], tmp_path / "wrong")
    file = bundle.file("int8")
    assert file is not None
    edit_onnx(file, "second.bias", lambda b: b + 1)
    result = fuseq.check(bundle.path)
    failed = {check.id: check for check in result.checks if not check.passed}
    assert "model.int8.qdq.onnx" in failed["files"].note
    assert result.first_divergence is not None
    assert result.first_divergence.node == "second"
    assert all(check.divergence == result.first_divergence for check in failed.values())


@pytest.mark.parametrize("kind", ["golden", "program"])
def test_a_changed_reference_is_refused(
    kind: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    bundle = copied(bundles["onnx"], tmp_path / "wrong")
    file = bundle.file(kind)
    assert file is not None
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(fuseq.FuseqError, match="FQ013"):
        fuseq.check(bundle.path)


def test_files_of_a_bundle_are_compared_by_its_manifest(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    """Integer inputs, channels last, and the derived bound: all from the manifest and program."""
    result = fuseq.check(
        bundles["onnx"] / "model.fp32.onnx",
        [bundles["tflite"] / "model.fp32.tflite", bundles["qnn"] / "model.float.onnx"],
        inputs="natural",
    )
    result.raise_for_status()
    assert len(result.checks) == 2
    assert all(0 < check.gate["max_rel"] < 1e-4 for check in result.checks)
    assert result.checks[0].gate["max_rel"] != 1e-5
    fidelity = fuseq.check(
        bundles["onnx"] / "model.fp32.onnx",
        bundles["tflite"] / "model.int8.tflite",
        inputs="natural",
        min_sqnr_db=20,
        layers=True,
    )
    fidelity.raise_for_status()
    [rows] = fidelity.layers.values()
    assert [row.node for row in rows if row.own_sqnr_db is not None]
    assert all(row.own_sqnr_db is None or row.own_sqnr_db > 25 for row in rows)


def test_what_loses_most_is_named(bundles: dict[str, Path], tmp_path: Path) -> None:
    """A file by itself, whose second layer has a wrong scale, below a limit of fidelity."""
    bundle = copied(bundles["tflite"], tmp_path / "wrong")
    file = bundle.file("int8")
    assert file is not None
    edit_tflite(file, "second.weight", 1.5)
    result = fuseq.check(bundles["onnx"] / "model.fp32.onnx", file, min_sqnr_db=25)
    [check] = result.checks
    assert not check.passed
    assert "not the file that the bundle was written with" in check.note
    assert check.divergence is not None
    assert (check.divergence.node, check.divergence.source) == ("second", "model.py:14")


def test_no_model_code_is_imported(bundles: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(bundles["onnx"], tmp_path / "bundle")
    (tmp_path / "model.py").write_text("raise SystemExit('the model was imported')")
    code = (
        "import sys, fuseq; fuseq.check('bundle', inputs='edges', samples=1).raise_for_status(); "
        "assert 'model' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_float_bundle_is_held_to_what_rounding_explains(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    target = load_target(str(tmp_path / "model.py"))
    out = tmp_path / "bundle"
    bundle = fuseq.lower(target.model, target.example_inputs, passes="fuse-affine", out=out)
    good = fuseq.check(bundle.path)
    assert [check.id for check in good.checks] == ["golden", "float-file"]
    assert all(0 < check.gate["max_rel"] < 1e-4 for check in good.checks)
    assert good.checks[0].gate["max_rel"] != 1e-5  # derived
    good.raise_for_status()
    edit_onnx(bundle.path / "model.fp32.onnx", "second.weight", lambda w: w * np.float32(1.001))
    wrong = fuseq.check(resealed(bundle))
    assert [check.passed for check in wrong.checks] == [False, False]
    assert wrong.first_divergence is not None
    assert wrong.first_divergence.source == "model.py:14"


@pytest.mark.parametrize("option", ["onnx{io=integer}", "qnn{layout=nchw}"])
def test_a_raw_file_with_integer_inputs_says_its_grids(option: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    target = load_target(str(tmp_path / "model.py"))
    x, backend = target.example_inputs, parse_backend(option)
    out = tmp_path / "bundle"
    bundle = fuseq.lower(target.model, x, backend=backend, out=out, calibration=[x[0]], check=False)
    file = bundle.file("int8")
    assert file is not None
    raw = tmp_path / "raw.onnx"
    shutil.copy(file, raw)
    [same] = fuseq.check(file, raw, [(x[0].numpy(),)], limits=Limits(max_lsb=0)).checks
    assert same.passed
    [near] = fuseq.check(target.model, raw, [(x[0].numpy(),)], min_sqnr_db=30).checks
    assert near.passed
