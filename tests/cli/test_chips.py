"""Chips on the command line."""

import pytest

from fuseq.backends.qnn import chip_checks, host

MISSING = host.host_problem() or (None if host.wheel_version() else "no onnxruntime-qnn wheel here")
needs_emulator = pytest.mark.skipif(bool(MISSING), reason=str(MISSING))


@needs_emulator
def test_what_was_not_measured_is_said(run, model, tmp_path):
    answer = run("lower", model, "-b", "qnn", "--chip", "sm8750", "-o", tmp_path / "o")
    assert answer.status == 0
    assert "x86 emulator; not verified on a device; no latency" in answer.stderr


@needs_emulator
def test_an_op_that_is_computed_otherwise_fails_its_gate(run, model, tmp_path, monkeypatch):
    def changed(program, runner):
        shown = right(program, runner)
        return {**shown, "relu": shown["relu"] ^ 4}

    right = chip_checks.shown_integers
    monkeypatch.setattr(chip_checks, "shown_integers", changed)
    answer = run("lower", model, "-b", "qnn", "--chip", "sm8750", "-o", tmp_path / "o")
    assert (answer.status, answer.code) == (1, "FQ302")
    assert "`relu`" in answer.stderr


def test_the_chips_of_a_backend(run):
    chips = run("backends", "qnn", "--json").document["chips"]
    assert chips["sm8750"] == {
        "soc_model": 69, "htp": 79, "vtcm_mb": 8, "product": "Snapdragon 8 Elite"
    }  # fmt: skip
    assert "chip sm8750" in run("backends", "qnn").stdout
    assert "chips" not in run("backends", "onnx", "--json").document


def test_a_backend_without_chips(run, model, tmp_path):
    answer = run("lower", str(model), "-b", "onnx", "--chip", "sm8750", "-o", str(tmp_path / "o"))
    assert answer.status == 2
    assert "FQ012" in answer.stderr
    assert "compiles for no chip" in answer.stderr


def test_an_unknown_chip(run, model, tmp_path):
    answer = run("lower", str(model), "-b", "qnn", "--chip", "sm875", "-o", str(tmp_path / "o"))
    assert answer.status == 2
    assert "FQ007" in answer.stderr
    assert "sm8750" in answer.stderr


def test_the_doctor_asks_for_the_emulator(run):
    found = {entry["tool"] for entry in run("doctor", "--json").document["tools"]}
    assert {"onnxruntime-qnn", "HTP host"} <= found


def test_the_doctor_of_one_backend(run):
    tools = {
        entry["tool"]: entry for entry in run("doctor", "-b", "qnn", "--json").document["tools"]
    }
    assert list(tools)[:2] == ["onnxruntime-qnn", "HTP host"]
    assert {entry["purpose"] for entry in tools.values()} == {"backend qnn"}
    wheel, host = tools["onnxruntime-qnn"], tools["HTP host"]
    assert "licence" in wheel["note"]
    assert bool(wheel["found"]) == wheel["ok"]
    assert host["found"].startswith("glibc ") or not host["ok"]
    assert ("HTP emulator" in tools) == (wheel["ok"] and host["ok"])
    if "HTP emulator" in tools:
        assert "not verified on a device" in tools["HTP emulator"]["note"]


def test_the_doctor_of_no_backend(run):
    answer = run("doctor", "-b", "qn")
    assert (answer.status, answer.code) == (2, "FQ007")
