"""`fuseq ptq`, as a process of its own where streams and exit codes matter."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import edited

# A network that 8 bits hurt: one channel of a value is far wider than the others.
LAYERS = """        self.head = nn.Conv2d(width, 2, 3, padding=1)
        with torch.no_grad():
            self.a[0].weight[0] *= 100
            self.b[0].weight[0] *= 100
            self.head.weight[:, 0] /= 100
        self.tail = nn.Conv2d(2, 2, 1)
"""


@pytest.fixture
def hurt(model: Path) -> Path:
    edited(model, LAYERS.splitlines()[0] + "\n", LAYERS)
    return edited(model, "self.head(y * 1.0)", "self.tail(torch.relu(self.head(y * 1.0)))")


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fuseq", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def sqnr(document: Any) -> float:
    (check,) = [check for check in document["checks"] if check["id"] == "int8-vs-float"]
    return float(check["metrics"]["sqnr_db"])


def test_a_process_answers_with_one_document(hurt: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    done = process("ptq", hurt, "-b", "onnx", "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["schema"], document["command"]) == ("fuseq/1", "ptq")
    assert document["bundle"] == str(out)
    assert document["passed"] is True
    assert document["passes"] == [
        "fuse-affine",
        "equalize",
        "legalize",
        "quantize{observer=mse}",
        "round-weights",
    ]
    assert document["sensitivities"] == []
    levels = [value["sqnr_db"] for value in document["tensors"]]
    assert levels == sorted(levels)
    assert {"node", "low", "high", "scale", "clipped", "rmse_steps", "dead", "outliers"} <= (
        document["tensors"][0].keys()
    )
    parity = [check for check in document["checks"] if check["id"].startswith("parity-")]
    assert parity
    assert all(check["metrics"]["differing"] == 0 for check in parity)
    manifest = json.loads((out / "fuseq.json").read_text())
    assert [entry["name"] for entry in manifest["passes"]] == document["passes"]


def test_a_process_prints_the_bundle_and_shows_the_worst_values(hurt: Path, tmp_path: Path) -> None:
    done = process("ptq", hurt, "-b", "onnx", "-o", tmp_path / "bundle", "--aids", "")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'bundle'}\n"
    assert "worst values" in done.stderr
    assert "note: outliers in `relu`: 1 of 4 channels, first 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_aids_bring_the_network_closer(run, hurt, tmp_path):
    found = []
    for number, options in enumerate((["--aids", "", "--observer", "minmax"], [])):
        answer = run("ptq", hurt, "-b", "onnx", "-o", tmp_path / str(number), "--json", *options)
        assert answer.status == 0, answer.stderr
        found.append(sqnr(answer.document))
    assert found[1] > found[0] + 10


@pytest.mark.parametrize("form", ["float", "int16"])
def test_a_budget_opts_the_worst_out(run, hurt, tmp_path, form):
    options = ["--aids", "", "--keep", "worst:1", "--as", form, "--json"]
    answer = run("ptq", hurt, "-b", "onnx", "-o", tmp_path / "bundle", *options)
    assert answer.status == 0, answer.stderr
    document = answer.document
    worst = document["sensitivities"][0]
    assert (worst["node"], worst["kind"]) == ("relu", "value")
    assert document["passes"][2].startswith("quantize{observer=mse,worst=1")
    kept = {"float": ["uint8"], "int16": ["uint8", "uint16"]}[form]
    assert {value["dtype"] for value in document["tensors"]} == set(kept)
    assert bool(document["float_islands"]) is (form == "float")
    assert "costs most alone" in answer.stderr


def test_nodes_are_kept_by_name(run, hurt, tmp_path):
    out = ["-b", "onnx", "--aids", "", "--json", "-o"]
    floating = run("ptq", hurt, *out, tmp_path / "a", "--keep", "tail").document
    assert floating["float_islands"] == ["tail"]
    wide = run("ptq", hurt, *out, tmp_path / "b", "--keep", "relu", "--as", "int16").document
    assert [v["node"] for v in wide["tensors"] if v["dtype"] == "uint16"] == ["relu"]


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        (["--keep", "worst:none"], 2, "FQ012"),
        (["--keep", "worst:0"], 2, "FQ012"),
        (["--keep", "nothing"], 2, "FQ007"),
        (["--aids", "no-such-pass"], 2, "FQ007"),
        (["--observer", "entropy"], 2, "FQ007"),
        (["--calib", "nowhere"], 2, "FQ006"),
        (["--aids", "correct-bias,fuse-affine{none=1}"], 2, "FQ012"),
    ],
)
def test_what_it_cannot_use_ends_with_a_code(run, hurt, tmp_path, options, status, code):
    answer = run("ptq", hurt, "-b", "onnx", "-o", tmp_path / "bundle", *options)
    assert (answer.status, answer.code) == (status, code)
    assert not (tmp_path / "bundle").exists()


def test_a_network_that_stays_float_is_a_gate_that_failed(run, hurt, tmp_path):
    """Nothing is left whose integers could be compared."""
    options = ["--aids", "", "--keep", "worst:99", "--json"]
    answer = run("ptq", hurt, "-b", "onnx", "-o", tmp_path / "bundle", *options)
    assert answer.status == 1
    assert answer.document["passed"] is False
    assert {value["dtype"] for value in answer.document["tensors"]} == set()


def test_an_unknown_form_and_a_taken_place_are_usage_errors(hurt: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert process("ptq", hurt, "-b", "onnx", "-o", out, "--as", "int4").returncode == 2
    out.mkdir()
    (out / "something").touch()
    done = process("ptq", hurt, "-b", "onnx", "-o", out, "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "FQ008"
