"""`fuseq bench`: what is timed and said; never how long it took."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import fuseq
from fuseq.target import load_target


@pytest.fixture
def bundles(model: Path, tmp_path: Path) -> Path:
    """A directory with an ONNX and a TFLite bundle, and no model code."""
    target = load_target(str(model))
    batches = [target.example_inputs]
    for backend in ("onnx", "tflite"):
        fuseq.lower(
            target.model,
            target.example_inputs,
            backend=backend,
            out=tmp_path / backend,
            calibration=batches,
            check=False,
        )
    model.unlink()
    return tmp_path


def test_files_and_bundles_are_compared_with_the_first(run, bundles):
    tflite = bundles / "tflite" / "model.int8.tflite"
    answer = run("bench", bundles / "onnx", tflite, "--runs", 7, "--warmup", 1, "--json")
    assert answer.status == 0, answer.stderr
    document = answer.document
    assert (document["runs"], document["warmup"]) == (7, 1)
    rows = document["files"]
    names = ["onnx/model.fp32.onnx", "onnx/model.int8.qdq.onnx", "model.int8.tflite"]
    assert [row["file"] for row in rows] == names
    for row in rows:
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        low, high = row["ratio_interval"]
        assert 0 < low <= row["ratio"] <= high
        assert row["threads"] == 1
    assert rows[0]["ratio"] == 1
    assert [row["runtime"].split()[0] for row in rows] == ["onnxruntime", "onnxruntime", "LiteRT"]
    assert [row["inputs"][0]["dtype"] for row in rows] == ["float32", "float32", "int8"]
    assert document["machine"]["cpu"]
    assert "a phone or an NPU" in document["remark"]  # nothing says what a single file is for
    assert [line for line in answer.stderr.splitlines() if line] == [
        "load ...",
        "warm-up ...",
        "time ...",
    ]


def test_a_bundle_says_what_it_is_for(run, bundles):
    phone = run("bench", bundles / "tflite", "--runs", 1, "--warmup", 0, "-q")
    assert phone.status == 0, phone.stderr
    assert "This machine is not the CPU of a phone" in phone.stdout
    assert "LiteRT" in phone.stdout
    here = run("bench", bundles / "onnx", "--runs", 1, "--warmup", 0, "-q", "--json")
    assert here.document["remark"] == ""


def test_shapes_and_threads_can_be_given(run, bundles):
    options = ("--runs", 1, "--warmup", 0, "--json", "-q")
    answer = run("bench", bundles / "onnx", "--input", "2x3x24x20", "--threads", 2, *options)
    assert answer.status == 0, answer.stderr
    for row in answer.document["files"]:
        assert row["inputs"][0]["shape"] == [2, 3, 24, 20]
        assert row["threads"] == 2
    file = bundles / "onnx" / "model.fp32.onnx"
    unknown = run("bench", file, *options)
    assert (unknown.status, unknown.code) == (2, "FQ005")
    assert "does not say how large its inputs are" in unknown.stderr
    for shape in ("1x4x16x16", "1x3x16", "x:1x3x16x16", "1x3xy"):
        refused = run("bench", file, "--input", shape, *options)
        assert (refused.status, refused.code) == (2, "FQ005"), shape


@pytest.mark.parametrize("dtype", ["FLOAT16", "DOUBLE", "INT32", "INT64", "BOOL", "UINT8"])
def test_inputs_of_any_number_type_are_made(run, tmp_path, dtype):
    kind = getattr(TensorProto, dtype)
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    x = helper.make_tensor_value_info("x", kind, [1, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph([node], "cast", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "cast.onnx")
    answer = run("bench", tmp_path / "cast.onnx", "--runs", 1, "--json")
    assert answer.status == 0, answer.stderr
    wanted = np.dtype(helper.tensor_dtype_to_np_dtype(kind)).name
    assert answer.document["files"][0]["inputs"] == [{"shape": [1, 4], "dtype": wanted}]


def test_a_file_of_texts_is_refused(run, tmp_path):
    node = helper.make_node("Identity", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.STRING, [1]) for name in "xy")
    graph = helper.make_graph([node], "texts", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "texts.onnx")
    answer = run("bench", tmp_path / "texts.onnx")
    assert (answer.status, answer.code) == (2, "FQ013")
    assert "an input of tensor(string)" in answer.stderr


def test_what_cannot_be_timed_is_refused(run, model, tmp_path, bundles):
    model.write_text("raise SystemExit('bench must not import this')")
    for file in (model, tmp_path / "none.onnx"):
        assert (run("bench", file).status, run("bench", file).code) == (2, "FQ013")
    context = tmp_path / "model_ctx_qnn.bin"  # of a chip: an emulator is all that runs it here
    context.write_bytes(b"")
    assert (run("bench", context).status, run("bench", context).code) == (4, "FQ503")
    damaged = bundles / "onnx" / "model.int8.qdq.onnx"
    damaged.write_bytes(damaged.read_bytes() + b"x")
    assert run("bench", bundles / "onnx").code == "FQ013"


RUNNER = """
import numpy as np
from fuseq.backend import Runner


class Emulator(Runner):
    name = "chip"
    emulates = "a chip"


class Plain(Runner):
    name = "plain"
    runtime, note, shapes, dtypes, quantized = "plain 1", "", ((2,),), ("float32",), False

    def __init__(self, file):
        pass

    def __call__(self, *inputs):
        return inputs

    def integers(self, *inputs):
        return {}
"""


@pytest.fixture
def their_runners(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_runners.py").write_text(RUNNER)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    entries = "chip = their_runners:Emulator\nplain = their_runners:Plain\n"
    (info / "entry_points.txt").write_text(f"[fuseq.runners]\n{entries}")
    for ending in ("chip", "plain"):
        (tmp_path / f"model.{ending}").write_bytes(b"")
    return tmp_path


def test_an_emulator_gives_no_latency(run, their_runners):
    answer = run("bench", their_runners / "model.chip")
    assert (answer.status, answer.code) == (4, "FQ503")
    assert "what an emulator takes is no latency" in answer.stderr
    assert answer.stdout == ""


def test_a_runner_without_threads_is_told_none(run, their_runners):
    plain = their_runners / "model.plain"
    row = run("bench", plain, "--runs", 1, "--json").document["files"][0]
    assert (row["runtime"], row["threads"]) == ("plain 1", None)
    assert run("bench", plain, "--threads", 2).code == "FQ012"
