"""Input nobody would give on purpose: each is a coded error, none is a bug of ours."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fuseq.target import load_target
from tests.cli.conftest import edited

BATCH = "torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))"
EXAMPLE = "(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)"
LONG = "x" * 5000


@pytest.fixture
def lower(run: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    return lambda target, *more: run("lower", target, "-b", "onnx", "-o", tmp_path / "out", *more)


# --- what is compared ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"x": np.zeros((1, 4, 16, 16), np.float32)}, "FQ005"),
        ({"x": np.zeros((3, 16), np.float32)}, "FQ005"),
        ({"x": np.float32(3)}, "FQ005"),
        ({"x": np.zeros((1, 3, 16, 16)), "y": np.zeros((1, 3, 16, 16))}, "FQ005"),
        ({}, "FQ005"),
        ({"x": np.full((1, 3, 16, 16), np.nan)}, "FQ005"),
        ({"x": np.zeros((0, 3, 16, 16))}, "FQ009"),
        ({"x": np.zeros((1, 3, 16, 16), np.uint8)}, "FQ006"),
        ({"x": np.array([None, {}], dtype=object)}, "FQ006"),
    ],
)
def test_arrays_that_a_model_does_not_take(run, model, tmp_path, arrays, code):
    np.savez(tmp_path / "x.npz", **arrays)
    answer = run("check", model, model, "--inputs", tmp_path / "x.npz")
    assert (answer.status, answer.code) == (2, code)


def test_arrays_that_are_too_small(run, model, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 3, 1, 1), np.float32))
    target = edited(model, "nn.Conv2d(width, 2, 3, padding=1)", "nn.Conv2d(width, 2, 3)")
    answer = run("check", target, target, "--inputs", tmp_path / "x.npz")
    assert (answer.status, answer.code) == (2, "FQ005")
    assert "cannot run on inputs of 1x3x1x1" in answer.stderr


def test_a_model_alone(run, model):
    answer = run("check", model)
    assert (answer.status, answer.code) == (2, "FQ009")


# --- calibration --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "batch",
    [
        "'abc'",
        "None",
        "3",
        "object()",
        "()",
        "[[torch.rand(1, 3, 16, 16)]]",
        "[1.0, 2.0]",
        "{'q': torch.rand(1, 3, 16, 16)}",
        "torch.rand(1, 3, 16, 16).numpy()",
        "torch.rand(0, 3, 16, 16)",
        "torch.rand(3, 16, 16)",
        "torch.rand(1, 3, 16, 16).to_sparse()",
        "torch.empty(1, 3, 16, 16, device='meta')",
    ],
)
def test_batches_that_are_no_inputs(lower, model, batch):
    answer = lower(edited(model, BATCH, batch))
    assert (answer.status, answer.code) == (2, "FQ006")
    assert "batch 1 " in answer.stderr


@pytest.mark.parametrize(
    "batch",
    [
        f"({BATCH}, 3)",
        f"[{BATCH}, torch.rand(2)]",
        f"{{'label': 3, 'x': {BATCH}}}",
        f"{BATCH}.requires_grad_()",
    ],
)
def test_batches_with_labels_and_gradients(lower, model, batch):
    assert lower(edited(model, BATCH, batch), "-q").status == 0


def test_calibration_data_of_a_model_without_inputs_left(lower, model):
    answer = lower(edited(model, "    for seed in range(4):\n        yield " + BATCH, "    yield"))
    assert (answer.status, answer.code) == (2, "FQ006")


# --- models and their inputs --------------------------------------------------------------------


@pytest.mark.parametrize(
    "example",
    [
        "torch.rand(0, 3, 16, 16)",
        "torch.full((1, 3, 16, 16), float('nan'))",
        "torch.empty(1, 3, 16, 16, device='meta')",
        "torch.rand(1, 3, 16, 16).to_sparse()",
        "[[torch.rand(1, 3, 16, 16)]]",
        "None",
    ],
)
def test_example_inputs_without_values(run, model, example):
    answer = run("fuse", edited(model, EXAMPLE, example))
    assert (answer.status, answer.code) == (2, "FQ005")


@pytest.mark.parametrize(
    "shape", ["1x3x0x8", "1x3x-1x8", "0x3x8x8", "", "x", "²:1x3x16x16", "-1:1x3x16x16", "x:x:1x3"]
)
def test_shapes_that_are_none(run, model, shape):
    answer = run("fuse", model, "--input", shape)
    assert (answer.status, answer.code) == (2, "FQ005")


def test_one_input_given_twice(run, model):
    answer = run("fuse", model, "--input", "x:1x3x16x16", "--input", "x:1x3x8x8")
    assert (answer.status, answer.code) == (2, "FQ005")


@pytest.mark.parametrize("target", ["builtins:int", "builtins:Exception"])
def test_factories_written_in_c(run, target):
    answer = run("fuse", target, "--input", "1x3x8x8")
    assert (answer.status, answer.code) == (2, "FQ003")


@pytest.mark.parametrize("output", ["self.head(y)[:0]", "self.head(y) > 0"])
def test_outputs_that_are_empty_or_no_numbers(run, model, output):
    assert run("fuse", edited(model, "self.head(y * 1.0)", output), "-q").status == 0


@pytest.mark.parametrize("dtype", ["half", "bfloat16"])
def test_outputs_of_half_precision(lower, model, dtype):
    answer = lower(edited(model, "self.head(y * 1.0)", f"self.head(y).{dtype}()"), "-q")
    assert answer.status == 0, answer.stderr


def test_outputs_that_are_sparse(run, model):
    answer = run("fuse", edited(model, "self.head(y * 1.0)", "self.head(y).to_sparse()"))
    assert (answer.status, answer.code) == (3, "FQ101")


def test_a_model_without_parameters(run, tmp_path):
    file = tmp_path / "relu.py"
    file.write_text("import torch\n\ndef get_model():\n    return torch.nn.ReLU()\n")
    for command in ("fuse", "inspect"):
        assert run(command, file, "--input", "1x3x8x8", "-q").status == 0


def test_a_model_without_values(run, model):
    answer = run("fuse", edited(model, "return Net(width)", "return Net(width).to('meta')"))
    assert (answer.status, answer.code) == (3, "FQ101")


def test_an_error_that_cannot_be_told(run, model):
    new = "class E(Exception):\n        __str__ = None\n    raise E"
    answer = run("fuse", edited(model, "return Net(width)", new))
    assert (answer.status, answer.code) == (2, "FQ003")


def test_a_forward_that_ends_the_process(run, model):
    answer = run("fuse", edited(model, "        y = ", "        raise SystemExit(0)\n        y = "))
    assert (answer.status, answer.code) == (2, "FQ003")
    assert "model.py:14" in answer.stderr


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {3: torch.zeros(1)},
        {"head.bias": [1, 2]},
        {"head.bias": torch.zeros(2).to_sparse()},
        {"head.bias": torch.zeros(2, device="meta")},
    ],
)
def test_weights_that_are_no_state_dict(run, model, tmp_path, change):
    state = load_target(str(model)).model.state_dict()
    torch.save({**state, **change}, tmp_path / "w.pt")
    answer = run("fuse", model, "--weights", tmp_path / "w.pt")
    assert (answer.status, answer.code) == (2, "FQ004")


def test_names_that_are_too_long(run, lower, model):
    assert run("fuse", LONG).code == "FQ001"
    assert run("fuse", f"{LONG}.py").code == "FQ001"
    assert run("inspect", LONG).code == "FQ001"
    assert run("check", model, LONG).code == "FQ001"
    assert run("fuse", model, "--weights", f"{LONG}.pt").code == "FQ004"
    assert lower(model, "--calib", LONG).code == "FQ006"
    assert run("lower", model, "-b", "onnx", "-o", LONG).code == "FQ008"


def test_directories_and_empty_files(run, model, tmp_path):
    (tmp_path / "dir.py").mkdir()
    (tmp_path / "dir.onnx").mkdir()
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "empty.py").touch()
    (tmp_path / "empty.pt").touch()
    assert run("fuse", tmp_path / "dir.py").code == "FQ001"
    assert run("fuse", tmp_path / "empty.py").code == "FQ002"
    assert run("inspect", tmp_path / "dir.onnx").code == "FQ013"
    assert run("inspect", tmp_path / "empty.onnx").code == "FQ013"
    assert run("check", model, tmp_path / "empty.onnx").code == "FQ013"
    assert run("fuse", model, "--weights", tmp_path / "empty.pt").code == "FQ004"
    assert run("fuse", model, "--weights", tmp_path).code == "FQ004"


def test_names_with_spaces_and_accents(run, model, tmp_path):
    there = tmp_path / "söme dir" / "möd el.py"
    there.parent.mkdir()
    model.rename(there)
    out = tmp_path / "ü b"
    assert run("lower", there, "-b", "onnx", "-o", out, "-q").status == 0
    assert run("check", out).status == 0


def test_the_working_directory_as_output(run, model, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    answer = run("lower", model, "-b", "onnx", "-o", ".")
    assert (answer.status, answer.code) == (2, "FQ008")
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_full_disk(lower, model, tmp_path, monkeypatch):
    def full(file: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    monkeypatch.setattr(Path, "write_bytes", full)
    answer = lower(model)
    assert (answer.status, answer.code) == (2, "FQ008")
    assert "No space left on device" in answer.stderr
    assert not (tmp_path / "out").exists()


def test_interrupted_by_the_keyboard(model):
    waiting = "        print('waiting', flush=True)\n        __import__('time').sleep(60)\n"
    target = edited(model, "        y = torch", f"{waiting}        y = torch")
    command = [sys.executable, "-m", "fuseq", "fuse", str(target)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "waiting" in line:
            break
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in told
    assert "Traceback" not in told
