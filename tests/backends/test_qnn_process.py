"""What becomes of a process that crashes, hangs or talks nonsense; no wheel needed."""

from __future__ import annotations

import itertools
import json
import platform
import sys
from pathlib import Path

import pytest

from fuseq.backends.qnn import emulator, host, worker
from fuseq.backends.qnn.chips import CHIPS
from fuseq.backends.qnn.htp_graph import only_graph, require_integer_graph
from fuseq.backends.qnn.refused_nodes import RefusedNode, refused_nodes
from fuseq.errors import FuseqError

CHIP = CHIPS["sm8750"]
SAY = "import json, os, pathlib, signal, sys, time; pathlib.Path('model_ctx.onnx').touch(); "
FAIL = "open('result.json', 'w').write(json.dumps({'error': 'no', 'ready': False})); "
REFUSED = """\
... GetCapability pass 1 (pre-Layout-Transform)
... Validation FAILED for 1 nodes in OrtNodeUnit (Transpose) :
	Operator type: Transpose Node name: nchw Node index: 0
	REASON : Failed to add node.

... GetCapability pass 2 (post-Layout-Transform)
... Validation FAILED for 1 nodes in OrtNodeUnit (DequantizeLinear) :
	Operator type: DequantizeLinear Node name: weight Node index: 1
	REASON : a standalone quantizer

... Validation PASSED for 1 nodes in OrtNodeUnit (Conv) :
	Operator type: Conv Node name: conv Node index: 3

... Validation FAILED for 2 nodes in OrtNodeUnit (Mish) :
	Operator type: DequantizeLinear Node name: act.in Node index: 4
	Operator type: Mish Node name: act Node index: 5
	REASON : Operators of type `Mish` are not supported.

... backendValidateOpConfig() failed for node `up_token_6` of type `TransposeConv2d` with code 3110
... Validation FAILED for 1 nodes in OrtNodeUnit (ConvTranspose) :
	Operator type: ConvTranspose Node name: up_token_6 Node index: 7
	REASON : Failed to add node.

... GetCapability pass 2 (post-Layout-Transform)
... Validation FAILED for 1 nodes in OrtNodeUnit (QNNExecutionProvider_1) :
	Operator type: QNNExecutionProvider_1 Node name: QNNExecutionProvider_1_0 Node index: 7
	REASON : what it made itself
"""


@pytest.fixture
def process(tmp_path, monkeypatch):
    """Compile with a script of the test's own as the process."""

    def compile_with(script: str) -> FuseqError:
        (tmp_path / "worker.py").write_text(SAY + script)
        monkeypatch.setattr(worker, "__file__", str(tmp_path / "worker.py"))
        monkeypatch.setattr(emulator, "require_emulator", lambda: "0")
        place = tmp_path / "place"
        place.mkdir()
        with pytest.raises(FuseqError) as raised:
            emulator.compile_context(tmp_path / "m.onnx", CHIP, place / "out", timeout=3)
        assert not list(place.iterdir())  # nothing half-written, nothing left behind
        return raised.value

    return compile_with


@pytest.mark.parametrize(
    ("script", "code", "exit_code", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "FQ505", 4, "SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "FQ505", 4, "SIGSEGV"),
        ("sys.exit(7)", "FQ505", 4, "status 7"),
        ("pass", "FQ505", 4, "status 0"),
        ("time.sleep(60)", "FQ506", 4, "within 3 s"),
        (FAIL, "FQ504", 3, "why: no"),
        (FAIL.replace("False", "True"), "FQ505", 4, "why: no"),
        (FAIL + f"print({REFUSED!r})", "FQ504", 3, "Operators of type `Mish`"),
    ],
    ids=["killed", "segfault", "status", "silent", "hang", "error", "ran", "refused"],
)
def test_a_failed_process_leaves_nothing(process, script, code, exit_code, words) -> None:
    error = process(script)
    assert (error.code, error.exit_code) == (code, exit_code)
    assert words in str(error)


def test_reasons_in_the_log() -> None:
    mish, up = refused_nodes(REFUSED)
    assert mish == RefusedNode("act", "Mish", "Operators of type `Mish` are not supported.")
    reason = "the HTP has no TransposeConv2d for such operands (code 3110)"
    assert up == RefusedNode("up", "ConvTranspose", reason)
    [quantizer] = refused_nodes(REFUSED.partition("... Validation PASSED")[0])
    assert quantizer.name == "weight"
    assert refused_nodes("") == []


def write_graph(file: Path, **data_types: int) -> Path:
    tensors = {name: {"data_type": code, "type": 3} for name, code in data_types.items()}
    chain = list(tensors)
    nodes = {
        f"op{k}_token_{k}": {
            "type": ("Quantize", "Conv2d", "Tanh")[k], "input_names": [a], "output_names": [b]
        }
        for k, (a, b) in enumerate(itertools.pairwise(chain))
    }  # fmt: skip
    file.write_text(json.dumps({"graph": {"nodes": nodes, "tensors": tensors}}))
    return file


def test_floats_in_a_graph(tmp_path) -> None:
    integer = write_graph(tmp_path / "a.json", x=0x232, q=0x408, r=0x416, y=0x308)
    assert require_integer_graph(integer).ops == {"Conv2d": 1, "Quantize": 1, "Tanh": 1}
    for float_type in (0x216, 0x232):
        leaking = write_graph(tmp_path / "b.json", x=0x408, q=0x408, r=0x408, y=float_type)
        with pytest.raises(FuseqError, match=r"FQ303.*1 ops.*\n.*`op2`") as raised:
            require_integer_graph(leaking)
        assert raised.value.exit_code == 1


def test_exactly_one_graph(tmp_path) -> None:
    with pytest.raises(FuseqError, match=r"FQ303.*0 graphs"):
        only_graph(tmp_path)
    graph = write_graph(tmp_path / "a.json")
    (tmp_path / "a_tensor_log.json").touch()
    assert only_graph(tmp_path) == graph
    write_graph(tmp_path / "b.json")
    with pytest.raises(FuseqError, match=r"FQ303.*2 graphs"):
        only_graph(tmp_path)


@pytest.mark.parametrize(
    ("system", "machine", "libc", "words"),
    [
        ("darwin", "arm64", ("", ""), "Linux on x86-64"),
        ("linux", "aarch64", ("glibc", "2.36"), "aarch64"),
        ("linux", "x86_64", ("glibc", "2.31"), "found 2.31"),
        ("linux", "x86_64", ("", ""), "found none"),
    ],
)
def test_hosts_without_an_emulator(monkeypatch, system, machine, libc, words) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    with pytest.raises(FuseqError, match="FQ503") as raised:
        host.require_emulator()
    assert raised.value.exit_code == 4
    assert words in str(raised.value)


def test_no_wheel(monkeypatch) -> None:
    monkeypatch.setattr(host, "host_problem", lambda: None)
    monkeypatch.setattr(host, "wheel_version", lambda: None)
    with pytest.raises(FuseqError, match=r"FQ502.*onnxruntime-qnn") as raised:
        host.require_emulator()
    assert raised.value.exit_code == 4
    assert "licence" in str(raised.value)
