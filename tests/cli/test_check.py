"""`fuseq check` as CI runs it: a process of its own on what a repository holds."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from fuseq.backends.tflite.file import METADATA, packed, unpacked
from tests.cli.check_files import FIRST, MODEL, SECOND, fuseq_check, make_repository, plant, process


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_what_is_committed_holds(place: Path) -> None:
    answer = fuseq_check(place, "--junit", "junit.xml", "--markdown", "page.md", "--json")
    assert answer.status == 0, answer.stderr
    assert answer.document["passed"] is True
    assert answer.document["first_divergence"] is None
    suites = ElementTree.parse(place / "junit.xml").getroot()
    cases = {(c.get("classname"), c.get("name")) for c in suites.iter("testcase")}
    assert len(cases) == len(list(suites.iter("testcase"))) == len(answer.document["checks"])
    assert ("int8-vs-float", "onnx/model.int8.qdq.onnx fidelity output") in cases
    assert ("int8-vs-float", "tflite/model.int8.tflite fidelity output") in cases
    assert ("int8-vs-float", "tflite/model.int8.tflite metrics") in cases
    assert ("tflite", "tflite/model.int8.tflite parity-tflite-ref-1x3x24x24") in cases
    assert ("onnx", "onnx/model.fp32.onnx float-file") in cases
    assert suites.get("failures") == "0"
    assert "all checks hold" in (place / "page.md").read_text()


@pytest.mark.parametrize("backend", ["onnx", "tflite"])
def test_a_wrong_scale_is_named_in_every_report(backend: str, place: Path) -> None:
    plant(place, backend)
    summary = place / "summary.md"
    summary.write_text("what an earlier command wrote\n")
    answer = process(
        place, "--junit", "junit.xml", "--github", "--json", GITHUB_STEP_SUMMARY=str(summary)
    )
    assert answer.status == 1
    assert answer.document["first_divergence"] == {"node": "second", "source": SECOND}
    failures = list(ElementTree.parse(place / "junit.xml").getroot().iter("testcase"))
    failed = [case for case in failures if case.find("failure") is not None]
    assert {case.get("classname") for case in failed} == {"int8-vs-float", backend}
    for case in failed:
        failure = case.find("failure")
        assert failure is not None
        assert f"`second` ({SECOND})" in failure.get("message", "")
        assert (case.get("file"), case.get("line")) == ("model.py", "13")
    lines = [line for line in answer.stderr.splitlines() if line.startswith("::")]
    assert lines
    assert all(line.startswith("::error file=model.py,line=13,title=") for line in lines)
    assert all("`second`" in line for line in lines)
    written = summary.read_text()
    assert written.startswith("what an earlier command wrote\n## fuseq check: ")
    assert f"`second` `{SECOND}`" in written


def test_a_wrong_float_file_is_bisected(place: Path) -> None:
    file = place / "build" / "onnx" / "model.fp32.onnx"
    model = onnx.load(file)
    [weight] = [t for t in model.graph.initializer if t.name == "first.weight"]
    values = onnx.numpy_helper.to_array(weight) * np.float32(1.001)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, file)
    answer = fuseq_check(place, "model.py", file, "--bisect", "--json")
    assert answer.status == 1
    assert answer.document["first_divergence"]["source"] == FIRST
    assert f" {FIRST}" in answer.stderr
    [check] = answer.document["checks"]
    assert check["gate"]["max_rel"] != 1e-5  # derived, from the bundle's program
    assert "not the file that the bundle was written with" in check["note"]


def test_layers_are_shown_worst_first(place: Path) -> None:
    answer = fuseq_check(
        place, "model.py", "build/onnx", "build/tflite", "--layers", "--inputs", "range", "--json"
    )
    assert answer.status == 0, answer.stderr
    assert set(answer.document["layers"]) == {
        "onnx/model.int8.qdq.onnx",
        "tflite/model.int8.tflite",
    }
    for rows in answer.document["layers"].values():
        own = [row["own_sqnr_db"] for row in rows if row["own_sqnr_db"] is not None]
        assert own == sorted(own)
        assert {"relu", "second"} <= {row["node"] for row in rows}
        assert {row["source"] for row in rows if row["node"] == "second"} == {SECOND}


def test_layers_of_a_bundle(place: Path) -> None:
    document = fuseq_check(place, "build/tflite", "--layers", "--json").document
    [rows] = document["layers"].values()
    assert {row["node"] for row in rows} == {"x", "relu", "second"}
    assert all(row["sqnr_db"] > 30 for row in rows)


def test_an_int8_pair_counts_steps(place: Path) -> None:
    answer = fuseq_check(place, "build/onnx", "build/tflite", "--json", "--layers")
    [check] = answer.document["checks"]
    assert check["class"] == "parity"
    assert check["metrics"]["total"] == 4 * 24 * 24
    [rows] = answer.document["layers"].values()
    assert all(row["differing"] is not None for row in rows)


def test_artifacts_never_run_the_models_code(place: Path) -> None:
    (place / "model.py").write_text("import os; os.mkdir('imported'); raise SystemExit(3)")
    answer = process(place, "--fast")
    assert answer.status == 0, answer.stderr
    assert "left out by --fast: 1 checks" in answer.stderr
    assert fuseq_check(place, "build/onnx", "build/tflite/model.fp32.tflite").status == 0
    assert not (place / "imported").exists()
    assert fuseq_check(place).code == "FQ003"
    assert (place / "imported").exists()
    (place / "model.py").unlink()
    assert fuseq_check(place, "build/tflite", "--inputs", "edges").status == 0


def test_only_artifacts_can_be_fast(place: Path) -> None:
    (place / "fuseq.check.toml").write_text('[[check]]\nid = "a"\nref = "model.py"\n')
    assert (fuseq_check(place, "--fast").status, fuseq_check(place, "--fast").code) == (2, "FQ009")
    text = '[[check]]\nid = "a"\nref = "model.py"\n[[check]]\nid = "b"\nref = "build/gone"\n'
    (place / "fuseq.check.toml").write_text(text)
    missing = fuseq_check(place, "--fast")  # left out it would hold nothing to account
    assert missing.status == 2
    assert "build/gone" in missing.stderr


def test_two_at_once_do_not_disturb_each_other(place: Path) -> None:
    command = [sys.executable, "-m", "fuseq", "check", "-q", "-f", "few.toml", "--junit", "j.xml"]
    (place / "few.toml").write_text('[[check]]\nid = "a"\nref = "build/onnx"\n')
    both = [subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [each.wait() for each in both] == [0, 0]
    assert ElementTree.parse(place / "j.xml").getroot().get("failures") == "0"
    assert not [file for file in place.iterdir() if file.name.startswith(".j.xml")]


def test_an_interrupt_leaves_nothing(place: Path) -> None:
    (place / "slow.py").write_text(
        "import time\ndef get_model():\n    open('started', 'w').close()\n    time.sleep(600)\n"
    )
    (place / "junit.xml").write_text("an older report")
    arguments = ["slow.py", "build/onnx", "--input", "1x3x24x24", "--junit", "junit.xml"]
    running = subprocess.Popen(
        [sys.executable, "-m", "fuseq", "check", *arguments], cwd=place, stderr=subprocess.PIPE
    )
    while not (place / "started").exists():
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    running.communicate()
    assert running.returncode == 130
    assert (place / "junit.xml").read_text() == "an older report"
    assert not [file for file in place.iterdir() if file.name.startswith(".junit")]


def test_inputs_from_a_folder_of_images(place: Path) -> None:
    from PIL import Image

    (place / "images").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (24, 24, 3), np.uint8)
        Image.fromarray(pixels).save(place / "images" / f"{number}.png")
    pair = ("build/onnx/model.fp32.onnx", "build/onnx", "--json")
    answer = fuseq_check(place, *pair, "--inputs", "images", "--samples", 2)
    assert answer.status == 0, answer.stderr
    assert answer.document["checks"][0]["metrics"]["sqnr_db"] > 30
    (place / "empty").mkdir()
    assert fuseq_check(place, *pair, "--inputs", "empty").code == "FQ006"
    wrong = fuseq_check(place, *pair, "--inputs", "natrual")
    assert wrong.code == "FQ006"
    assert "did you mean 'natural'?" in wrong.stderr


def stripped(file: Path, out: Path) -> Path:
    """A TFLite file without what says how its images lie."""
    model = unpacked(file.read_bytes())
    model.metadata = [entry for entry in model.metadata if entry.name != METADATA.encode()]
    out.write_bytes(packed(model))
    return out


def test_a_raw_file_whose_shape_says_how_images_lie(place: Path) -> None:
    raw = stripped(place / "build" / "tflite" / "model.int8.tflite", place / "raw.tflite")
    answer = fuseq_check(place, "model.py", raw, "--min-sqnr-db", 30, "--json")
    assert answer.status == 0, answer.stderr
    assert "channels last" in answer.document["checks"][0]["note"]


def test_a_raw_file_that_fits_both_ways_is_asked_about(place: Path) -> None:
    text = (place / "model.py").read_text().replace("rand(1, 3, 24, 24", "rand(1, 3, 3, 3")
    (place / "model.py").write_text(text)
    lower = [sys.executable, "-m", "fuseq", "lower", "model.py", "-b", "tflite", "-o", "small"]
    subprocess.run([*lower, "-q"], cwd=place, check=True, capture_output=True)
    stripped(place / "small" / "model.fp32.tflite", place / "raw.tflite")
    asked = fuseq_check(place, "model.py", "raw.tflite")
    assert (asked.status, asked.code) == (2, "FQ012")
    assert "--layout raw.tflite=nhwc" in asked.stderr
    assert fuseq_check(place, "model.py", "raw.tflite", "--layout", "nhwc").status == 0
    assert fuseq_check(place, "model.py", "raw.tflite", "--layout", "raw.tflite=nhwc").status == 0
    assert fuseq_check(place, "model.py", "raw.tflite", "--layout", "nchw").status == 1
    assert fuseq_check(place, "model.py", "raw.tflite", "--layout", "nwhc").code == "FQ012"
    (place / "t.toml").write_text(
        '[[check]]\nid = "a"\nref = "model.py"\ncand = "raw.tflite"\nlayout = "nhwc"\n'
    )
    assert fuseq_check(place, "-f", "t.toml").status == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("build/onnx", "-f", "fuseq.check.toml"), "FQ012"),
        (("--max-rel", 1e-3), "FQ012"),
        (("build/onnx", "--update"), "FQ012"),
        (("-f", "none.toml"), "FQ012"),
        (("build/onnx", "build/tflite", "--junit", "no/such/place.xml"), "FQ008"),
        (("model.py",), "FQ009"),
        (("build/onnx", "build/gone"), "FQ001"),
    ],
)
def test_usage(arguments: tuple[object, ...], code: str, place: Path) -> None:
    answer = fuseq_check(place, *arguments)
    assert (answer.status, answer.code) == (2, code)


def test_paths_are_relative_to_the_thresholds_file(place: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    answer = fuseq_check(elsewhere, "-f", os.path.relpath(place / "fuseq.check.toml", elsewhere))
    assert answer.status == 0, answer.stderr


def test_update_writes_what_was_measured(place: Path) -> None:
    file = place / "fuseq.check.toml"
    before = file.read_text()
    refused = fuseq_check(place, "--update", CI="true")
    assert (refused.status, refused.code) == (2, "FQ012")
    assert file.read_text() == before
    answer = fuseq_check(place, "--update")
    assert answer.status == 0, answer.stderr
    assert "-sqnr_db = 40.0  # dB" in answer.stdout
    after = file.read_text()
    changed = [b for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b]
    assert [line.split(" = ")[0] for line in changed] == ["sqnr_db", "psnr_db", "metric_drop"]
    assert after.startswith("# what this repository commits to\n")
    assert "  # dB\n" in after
    assert fuseq_check(place).status == 0  # it just passes
    assert "no limit changed" in fuseq_check(place, "--update").stdout
    file.write_text(after.replace("[0, 1]", "[0, 1e-3]"))
    assert fuseq_check(place).status == 1


TWO = MODEL.replace("return self.second(y)", "return self.second(y), y[:, :1]")


def test_each_output_has_limits_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(TWO)
    lower = [sys.executable, "-m", "fuseq", "lower", "model.py", "-b", "onnx", "-o", "two", "-q"]
    subprocess.run(lower, cwd=tmp_path, check=True, capture_output=True)

    def limited(limits: str) -> Path:
        head = '[[check]]\nid = "a"\nref = "model.py"\ncand = "two"\ninputs = "natural"\n'
        (tmp_path / "t.toml").write_text(head + limits)
        return tmp_path

    answer = fuseq_check(limited("sqnr_db = { output_0 = 20 }"), "-f", "t.toml", "--json")
    assert answer.status == 0, answer.stderr
    gates = {check["output"]: check["gate"] for check in answer.document["checks"]}
    assert gates == {"output_0": {"sqnr_db_min": 20}, "output_1": {}}
    answer = fuseq_check(
        limited("sqnr_db = { output_0 = 20, output_1 = 300 }"), "-f", "t.toml", "--json"
    )
    assert answer.status == 1
    passed = {check["output"]: check["passed"] for check in answer.document["checks"]}
    assert passed == {"output_0": True, "output_1": False}
    wrong = fuseq_check(limited("sqnr_db = { outptu_0 = 20 }"), "-f", "t.toml")
    assert (wrong.status, wrong.code) == (2, "FQ012")
    assert "did you mean 'output_0'?" in wrong.stderr
    assert "t.toml" in wrong.stderr
    limited("metric_drop = { psnr = 0.1 }")
    assert fuseq_check(tmp_path, "-f", "t.toml").code == "FQ012"


def test_candidates_of_one_name_are_told_apart(place: Path) -> None:
    shutil.copytree(place / "build", place / "other")
    pair = ("model.py", "build/onnx", "other/onnx", "--json", "--layers")
    answer = fuseq_check(place, *pair)
    assert answer.status == 0, answer.stderr
    assert len({check["id"] for check in answer.document["checks"]}) == 2
    assert len(answer.document["layers"]) == 2


def test_a_metric_that_raises_is_named(place: Path) -> None:
    text = (place / "model.py").read_text()
    (place / "model.py").write_text(text.replace('{"psnr": 30.0', '{"psnr": 1 / 0'))
    answer = fuseq_check(place)
    assert answer.code == "FQ003"
    assert "evaluate(run) raised ZeroDivisionError" in answer.stderr
    assert "check 'int8-vs-float'" in answer.stderr
