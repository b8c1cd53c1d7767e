"""The commands on good input: JSON as documented, only the result on stdout."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import fuseq
from fuseq.target import load_target


def test_fuse_answers_with_one_document(run, model):
    answer = run("fuse", model, "--json")
    assert answer.status == 0
    document = answer.document
    assert (document["schema"], document["command"]) == ("fuseq/1", "fuse")
    assert document["ops"] == {"conv_before": 3, "conv_after": 2, "bn_before": 2, "bn_after": 0}
    assert document["capture"] in ("fx", "export")
    assert document["max_rel_error_f64"] <= 1e-12
    assert document["max_abs_error_f32"] < 1e-5
    assert document["seconds"] > 0
    assert sorted(len(region["nodes"]) for region in document["regions"]) == [2, 5]
    assert document["macs"]["before"] > document["macs"]["after"] > 0
    for region in document["regions"]:
        assert {"module", "nodes", "root", "rules", "residual", "validity"} <= region.keys()
        assert {"macs_before", "macs_after", "parameters_before"} <= region.keys()
        assert all({"name", "op", "source", "scope"} == node.keys() for node in region["nodes"])
    assert all({"node", "reason"} <= refusal.keys() for refusal in document["refused"])
    assert "the user's model prints this" in answer.stderr


def test_lower_writes_a_checked_bundle(run, model, tmp_path):
    out = tmp_path / "bundle"
    answer = run("lower", model, "-b", "onnx", "-o", out, "--json")
    assert answer.status == 0, answer.stderr
    document = answer.document
    assert document["bundle"] == str(out)
    assert document["passed"] is True
    assert document["seconds"] > 0
    assert document["peak_rss_mb"] > 50
    assert {entry["kind"] for entry in document["files"]} >= {"float", "int8"}
    for entry in document["files"]:
        assert fuseq.bundle.sha256(out / entry["path"]) == entry["sha256"]
    for check in document["checks"]:
        assert {"id", "pair", "class", "metrics", "gate", "passed"} <= check.keys()
    parity = [check["metrics"] for check in document["checks"] if check["class"] == "parity"]
    assert parity
    assert all(metrics["differing"] == metrics["max_lsb"] == 0 for metrics in parity)
    assert all(metrics["total"] > 0 for metrics in parity)


def test_lower_prints_the_bundle_alone(run, model, tmp_path):
    answer = run("lower", model, "-b", "onnx", "-o", tmp_path / "bundle")
    assert answer.status == 0, answer.stderr
    assert answer.stdout == f"{tmp_path / 'bundle'}\n"
    assert "quantize ..." in answer.stderr
    assert "parity" in answer.stderr


def test_check_and_inspect_read_bundles_and_files(run, model, tmp_path):
    out = tmp_path / "bundle"
    assert run("lower", model, "-b", "onnx", "-o", out, "-q").status == 0
    assert run("check", out).status == 0
    pair = run("check", model, out / "model.fp32.onnx", "--json")
    assert pair.status == 0, pair.stderr
    assert pair.document["passed"] is True
    assert "compare ..." in pair.stderr
    assert pair.document["first_divergence"] is None
    assert [check["class"] for check in pair.document["checks"]] == ["exact"]

    assert run("inspect", out, "--json").document["changed"] == []
    ops = run("inspect", out / "model.fp32.onnx", "--json").document["ops"]
    assert ops["Conv"] == 2

    damaged = out / "model.int8.qdq.onnx"
    damaged.write_bytes(damaged.read_bytes() + b"x")
    inspected = run("inspect", out, "--json")
    assert inspected.status == 1
    assert inspected.document["changed"] == ["model.int8.qdq.onnx"]
    assert run("check", out).code == "FQ013"


def test_check_fails_on_another_function(run, model, tmp_path):
    out = tmp_path / "bundle"
    passes = ("--passes", "fuse-affine")
    assert run("lower", model, "-b", "onnx", "-o", out, *passes, "-q").status == 0
    other = tmp_path / "other.py"
    other.write_text(model.read_text().replace("y * 1.0", "y * 1.01"))
    answer = run("check", other, out / "model.fp32.onnx", "--json")
    assert answer.status == 1
    assert answer.document["passed"] is False
    assert run("check", other, out / "model.fp32.onnx", "--max-rel", 0.1).status == 0


def test_check_holds_int8_to_a_gate_on_given_inputs(run, model, tmp_path):
    out = tmp_path / "bundle"
    assert run("lower", model, "-b", "onnx", "-o", out, "-q").status == 0
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, x=np.random.default_rng(0).random((1, 3, 24, 40), dtype=np.float32))
    for limit, status in ((10, 0), (90, 1)):
        answer = run("check", model, out, "--inputs", inputs, "--min-sqnr-db", limit, "--json")
        assert answer.status == status, answer.stderr
        (check,) = answer.document["checks"]
        assert check["class"] == "fidelity"
        assert 20 < check["metrics"]["sqnr_db"] < 60
    same = run("check", model, model, "--json")
    assert (same.status, same.document["checks"][0]["metrics"]["max_abs"]) == (0, 0)


def test_inspect_a_model(run, model):
    answer = run("inspect", model, "--json", "--graph")
    found = answer.document
    assert found["ops"]["conv2d"] == 3
    assert found["inputs"] == [{"name": "x", "shape": [1, 3, 16, 16]}]
    assert "batch_norm" in found["graph"]
    convolutions = 256 * (3 * 4 * 9 + 3 * 4 + 4 * 2 * 9)
    assert found["macs"]["by_op"]["conv2d"] == convolutions
    assert found["macs"]["total"] == sum(found["macs"]["by_op"].values())
    assert found["memory"]["largest_value"]["bytes"] == 4 * 256 * 4
    (field,) = found["receptive_fields"]
    assert (field["size"], field["stride"], field["whole_image"]) == ([5, 5], [1.0, 1.0], [])
    assert found["fused"]["ops"]["conv_after"] == 2
    assert sorted(len(region["nodes"]) for region in found["regions"]) == [2, 5]
    (target,) = [entry for entry in found["targets"] if entry["backend"] == "onnx"]
    assert target["refusals"] == target["floats"] == target["unmet"] == []
    assert [warning["kind"] for warning in found["warnings"]] == ["unset"]
    assert "warning: " in answer.stderr


def test_inspect_shows_what_backends_refuse(run, model):
    text = model.read_text().replace("self.head(y * 1.0)", "nn.functional.elu(self.head(y)).mean()")
    model.write_text(text)
    shown = run("inspect", model)
    assert shown.status == 0, shown.stderr
    assert "the whole image, through mean" in shown.stdout
    assert "float: no integer kernel for elu" in shown.stdout
    assert "onnx ..." in shown.stderr


def test_factory_arguments_and_shapes_reach_the_model(run, model):
    shaped = ("--arg", "width=8", "--input", "x:2x3x8x24")
    answer = run("inspect", f"{model}:get_model", *shaped, "--json")
    assert answer.document["outputs"][0]["shape"] == [2, 2, 8, 24]
    assert answer.document["parameters"] > run("inspect", model, "--json").document["parameters"]


def test_a_package_is_a_target(run, model, monkeypatch):
    (model.parent / "mine").mkdir()
    model.rename(model.parent / "mine" / "nets.py")
    monkeypatch.chdir(model.parent)
    answer = run("inspect", "mine.nets:Net", "--input", "1x3x8x8", "--json")
    assert answer.status == 0, answer.stderr


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_replace_the_factorys(model, tmp_path, suffix):
    state = {
        key: torch.full_like(value, 2)
        for key, value in load_target(str(model)).model.state_dict().items()
    }
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, file)
    else:
        save_file(state, file)
    loaded = load_target(str(model), weights=file).model.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.fixture(params=["images", "arrays", "function", "random"])
def calibration(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    random = np.random.default_rng(0)
    if request.param == "images":
        (tmp_path / "photos" / "more").mkdir(parents=True)
        for name in ("a.png", "more/b.PNG"):
            pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name)
        return str(tmp_path / "photos")
    if request.param == "arrays":
        np.savez(tmp_path / "data.npz", x=random.random((3, 3, 16, 16), dtype=np.float32))
        return str(tmp_path / "data.npz")
    if request.param == "function":
        file = tmp_path / "loader.py"
        file.write_text("import torch\n\ndef mine():\n    yield (torch.rand(2, 3, 16, 16),)\n")
        return f"{file}:mine"
    return "random"


def test_calibration_sources(run, model, tmp_path, calibration):
    data = ("--calib", calibration, "--samples", 2)
    answer = run("lower", model, "-b", "onnx", "-o", tmp_path / "out", *data, "--json")
    assert answer.status == 0, answer.stderr
    manifest = run("inspect", tmp_path / "out", "--json").document["manifest"]
    assert manifest["calibration"]["synthetic"] == (calibration == "random")
    assert manifest["calibration"]["batches"] == (1 if calibration.endswith(":mine") else 2)


def test_registries_are_listed_without_importing(run):
    names = [entry["name"] for entry in run("passes", "--json").document["passes"]]
    assert {"fuse-affine", "legalize", "quantize", "recalibrate-bn"} <= set(names)
    backends = run("backends", "--json").document["backends"]
    assert "onnx" in [entry["name"] for entry in backends]
    assert run("passes", "quantize", "--json").document["options"]["observer"]["type"] == "str"
    assert run("backends", "onnx", "--json").document["options"]["opset"]["default"] is None


def test_doctor_names_what_was_found(run):
    tools = {entry["tool"]: entry for entry in run("doctor", "--json").document["tools"]}
    assert tools["torch"]["found"].startswith(torch.__version__.partition("+")[0])
    assert tools["onnxruntime"]["ok"] is True


def test_version(run):
    assert run("--version").stdout == f"fuseq {fuseq.__version__}\n"
