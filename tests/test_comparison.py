"""The comparison with other toolkits: what judges them, tried on files whose answers are known."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import fuseq
from benchmarks.peers import ours, tables, worker
from benchmarks.peers.bed import Bed, student
from benchmarks.peers.measure import Bench
from benchmarks.peers.shipped import convolutions_and_norms, runner
from benchmarks.peers.toolkits import TOOLKITS, run


def test_branches_are_counted_where_they_run(tmp_path):
    found = worker.fused(ours, tmp_path, "repvgg")
    assert (found["before"], found["after"]) == ([12, 15], [6, 0])


@pytest.mark.parametrize("backend", ["onnx", "tflite:io=int8", "tflite:layout=nchw"])
def test_files_run_in_any_layout_and_type(tmp_path, backend):
    model, images = student(blocks=1), list(torch.rand(2, 1, 3, 16, 16))
    program = fuseq.capture(model, images[0], dynamic=False)
    program = fuseq.quantize(program, target=backend.split(":")[0], calibration=images)
    fuseq.lower(program, backend=lowering(backend), out=tmp_path / "bundle", check=False)
    (file,) = (tmp_path / "bundle").glob("model.int8*")
    expected = program(images[0])
    assert np.abs(runner(file)(images[0].numpy()) - expected.numpy()).max() < 1e-6
    assert convolutions_and_norms(file) == [3, 0]


def lowering(backend):
    from fuseq.backends.onnx import OnnxBackend
    from fuseq.backends.tflite import TfliteBackend

    name, _, option = backend.partition(":")
    options = dict([option.split("=")]) if option else {}
    return {"onnx": OnnxBackend, "tflite": TfliteBackend}[name](**options)


def test_a_toolkit_that_fails_says_why(tmp_path):
    missing = dataclasses.replace(TOOLKITS[0], module="nobody")
    assert "nobody" in run(missing, "ptq", tmp_path, tmp_path / "out")["failed"]


def test_the_page_compares_what_there_is_and_names_what_failed():
    bench = Bench(Bed(Path()), Path(), seeds=2, steps=1, rounds=1)
    both = {
        "ours": {"qat": {str(s): result(20.5 + s, 0) for s in range(2)}},
        "aimet": {"qat": {str(s): result(20.0 + s, 7) for s in range(2)}},
        "brevitas_toolkit": {"ptq": {"failed": "Boom"}, "qat": {"0": {"failed": "Bang"}}},
    }
    text = tables.quality(both, bench)
    assert "| +0.500 ± 0.000 | 14 of 200 |" in text
    assert "| Brevitas | Boom |  | Bang |" in text


def result(psnr, differing):
    return {"psnr": psnr, "trained_psnr": psnr, "differing": differing, "pixels": 100}
