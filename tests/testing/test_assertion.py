"""`assert_equivalent`, and what importing `fuseq.testing` takes."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fuseq
from fuseq.equivalence.result import CheckResult
from fuseq.testing import BackendContract, PassContract, assert_equivalent, small_networks
from fuseq.testing.assertion import described


@pytest.fixture
def lowered(tmp_path):
    model, inputs = small_networks()["Plain"]
    generator = torch.Generator().manual_seed(1)
    batches = [torch.rand(1, 3, 11, 14, generator=generator) for _ in range(2)]
    bundle = fuseq.lower(model, inputs, out=tmp_path / "plain", calibration=batches)
    return model, inputs, bundle


def test_what_is_equivalent_passes(lowered):
    model, inputs, bundle = lowered
    program = fuseq.capture(model, inputs)
    assert_equivalent(program, fuseq.fuse(program))
    assert_equivalent(program, bundle.path / "model.fp32.onnx")
    assert_equivalent(program, bundle, min_sqnr_db=15.0)
    assert_equivalent(bundle.program, bundle)
    assert_equivalent(bundle)


def test_a_difference_is_shown_with_what_was_measured(lowered):
    model, inputs, bundle = lowered
    program = fuseq.capture(model, inputs)
    with pytest.raises(AssertionError) as caught:
        assert_equivalent(program, bundle, min_sqnr_db=200.0)
    said = str(caught.value)
    assert said.startswith("1 of 1 checks failed\nFAILED  fidelity: float Plain <-> plain/model")
    assert "allowed sqnr_db_min 200" in said
    assert "measured sqnr_db " in said


def test_the_first_wrong_node_is_named(lowered):
    _, _, bundle = lowered
    wrong = bundle.program.clone()
    table = wrong.quantization
    name = next(name for name in table.integers if name.endswith("bias"))
    shifted = {**table.integers, name: table.integers[name] + 5000}
    wrong.quantization = dataclasses.replace(table, integers=shifted)
    with pytest.raises(AssertionError, match="first difference: `") as caught:
        assert_equivalent(bundle.program, wrong)
    assert "networks.py:" in str(caught.value)


def test_nothing_compared_is_a_failure():
    assert described(CheckResult(())) == "nothing was compared"
    with pytest.raises(fuseq.FuseqError) as caught:
        assert_equivalent(small_networks()["Plain"][0])
    assert caught.value.code == "FQ009"


def test_inputs_can_be_given(lowered):
    model, inputs, bundle = lowered
    batches = [(np.zeros((1, 3, 8, 8), np.float32),), (np.ones((2, 3, 9, 9), np.float32),)]
    assert_equivalent(fuseq.fuse(model, inputs), bundle.path / "model.fp32.onnx", batches)


def test_pytest_is_not_needed():
    code = "import sys; sys.modules['pytest'] = None; import fuseq; fuseq.testing.PassContract"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_manual_names_every_test_of_a_contract():
    page = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()
    named = set(re.findall(r"`(test_it\w+|test_every\w+|test_new\w+|test_unknown\w+)`", page))
    contracts = (PassContract, BackendContract)
    assert named == {name for kind in contracts for name in vars(kind) if name.startswith("test_")}
