"""A repository as a user has it: a model, bundles of it, and a thresholds file."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from typer.testing import CliRunner

import fuseq
from fuseq.backends.tflite.file import packed, unpacked
from fuseq.bundle import MANIFEST, sha256
from fuseq.cli.commands import app
from fuseq.target import load_target
from tests.cli.conftest import Answer

MODEL = """import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x):
        y = torch.relu(self.first(x))
        return self.second(y)


def get_model():
    torch.manual_seed(0)
    return Net()


def example_inputs():
    return (torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0)),)


def calibration_data():
    yield example_inputs()[0]
"""
EVALUATE = """

def evaluate(run):
    return {"psnr": 30.0 + float(run(example_inputs()[0].numpy()).mean())}
"""
FIRST, SECOND = "model.py:12", "model.py:13"

THRESHOLDS = """# what this repository commits to
[[check]]
id = "int8-vs-float"
ref = "torch:model.py"
cand = ["build/onnx/model.int8.qdq.onnx", "build/tflite/model.int8.tflite"]
inputs = "natural"
samples = 2
sqnr_db = 40.0  # dB
psnr_db = { output = 50 }
data_range = [0, 1]
metric_drop = { psnr = 0.15 }

[[check]]
id = "onnx"
ref = "build/onnx"

[[check]]
id = "tflite"
ref = "build/tflite"
"""


_GITHUB = ("GITHUB_WORKSPACE", "GITHUB_STEP_SUMMARY")


def fuseq_check(place: Path, *arguments: object, **environment: str) -> Answer:
    """`fuseq check` in a directory, in this process."""
    env: dict[str, str | None] = dict.fromkeys(("CI", *_GITHUB)) | environment
    with contextlib.chdir(place):
        done = CliRunner().invoke(app, ["check", "-q", *map(str, arguments)], env=env)
    return Answer(done.exit_code, done.stdout, done.stderr)


def process(place: Path, *arguments: object, **environment: str) -> Answer:
    """The same, as a process of its own."""
    kept = {k: v for k, v in os.environ.items() if k not in ("CI", *_GITHUB)}
    done = subprocess.run(
        [sys.executable, "-m", "fuseq", "check", "-q", *map(str, arguments)],
        cwd=place,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def make_repository(place: Path) -> Path:
    """Everything, with bundles of two backends."""
    (place / "model.py").write_text(MODEL + EVALUATE)
    (place / "fuseq.check.toml").write_text(THRESHOLDS)
    target = load_target(str(place / "model.py"))
    for backend in ("onnx", "tflite"):
        x = target.example_inputs
        out = place / "build" / backend
        fuseq.lower(target.model, x, backend=backend, out=out, calibration=[x[0]], check=False)
    return place


def plant(place: Path, backend: str, factor: float = 1.25) -> None:
    """Multiply the scales of the second layer's weight in an int8 file, as a wrong build would."""
    bundle = place / "build" / backend
    if backend == "onnx":
        file = bundle / "model.int8.qdq.onnx"
        model = onnx.load(file)
        [node] = [n for n in model.graph.node if n.name == "second.weight.dequantized"]
        [scale] = [t for t in model.graph.initializer if t.name == node.input[1]]
        values = numpy_helper.to_array(scale) * np.float32(factor)
        scale.CopyFrom(numpy_helper.from_array(values, scale.name))
        onnx.save(model, file)
    else:
        file = bundle / "model.int8.tflite"
        opened = unpacked(file.read_bytes())
        [tensor] = [t for t in opened.subgraphs[0].tensors if t.name.decode() == "second.weight"]
        tensor.quantization.scale = np.asarray(tensor.quantization.scale, np.float32) * factor
        file.write_bytes(packed(opened))
    manifest = json.loads((bundle / MANIFEST).read_text())
    for entry in manifest["files"]:
        entry["sha256"] = sha256(bundle / entry["path"])
    (bundle / MANIFEST).write_text(json.dumps(manifest))
