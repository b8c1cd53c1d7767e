"""Choices of precision on the command line, in a process of its own, as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.cli.conftest import Answer

ROOT = Path(__file__).parents[2]


def fuseq(*arguments: str) -> tuple[int, Any, str]:
    """Exit status, the JSON document, standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "fuseq", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def lower(out: Path, options: str) -> tuple[int, Any, str]:
    return fuseq(
        "lower", "tests.networks.gated:small", "--input", "1x3x32x32", "--calib", "random",
        "--samples", "2", "-b", "onnx", "-o", str(out), "--json", "--passes",
        f"fuse-affine,legalize,quantize{{{options}}}",
    )  # fmt: skip


def zero_point_types(file: Path) -> set[int]:
    model = onnx.load(file)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {types[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"}


def test_sixteen_bits_everywhere_pass_every_check(tmp_path: Path) -> None:
    status, document, errors = lower(tmp_path / "out", "activation=uint16")
    assert status == 0, errors
    assert document["passed"]
    checks = {check["id"]: check for check in document["checks"]}
    parity = [check for name, check in checks.items() if name.startswith("parity-")]
    assert len(parity) == 2
    for check in (*parity, checks["table"]):
        assert check["metrics"]["differing"] == 0
    assert all(check["metrics"]["float_values"] > 5 for check in parity)
    assert all(check["metrics"]["float_max_lsb"] <= 1 for check in parity)
    file = tmp_path / "out" / "model.int8.qdq.onnx"
    assert zero_point_types(file) == {onnx.TensorProto.UINT16}
    assert onnx.load(file).opset_import[0].version == 21
    status, document, errors = fuseq("check", str(tmp_path / "out"), "--json")
    assert status == 0, errors
    assert document["passed"]
    assert {check["id"].split("-")[0] for check in document["checks"]} == {
        *("golden", "table", "parity", "float"),
    }


def test_sixteen_bits_of_one_value_leave_the_others(tmp_path: Path) -> None:
    status, document, errors = lower(tmp_path / "out", 'wide=("x",),per_channel=false')
    assert status == 0, errors
    assert document["passed"]
    file = tmp_path / "out" / "model.int8.qdq.onnx"
    assert zero_point_types(file) == {onnx.TensorProto.UINT16, onnx.TensorProto.UINT8}


@pytest.mark.parametrize(
    ("options", "backend", "code", "said"),
    [
        ("activation=int16", "onnx", "FQ012", "activation=uint8 or activation=uint16"),
        ("activation=uint16", "onnx{opset=18}", "FQ501", "onnx{opset=21}"),
        ('wide=("xx",)', "onnx", "FQ007", "did you mean 'x'?"),
        ('keep=("xx",)', "onnx", "FQ007", "did you mean 'x'?"),
        ("per_channel=2", "onnx", "FQ012", "per_channel"),
    ],
)
def test_what_there_is_not_is_refused_with_a_way_out(
    options: str,
    backend: str,
    code: str,
    said: str,
    run: Callable[..., Answer],
    model: Path,
    tmp_path: Path,
) -> None:
    passes = f"fuse-affine,legalize,quantize{{{options}}}"
    answer = run("lower", model, "-b", backend, "-o", tmp_path / "out", "--passes", passes)
    assert answer.status != 0
    assert answer.code == code
    assert said in answer.stderr
    assert not (tmp_path / "out").exists()
