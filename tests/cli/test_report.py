"""`fuseq report`: where the page goes, what is refused, and that no model code runs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import fuseq
from fuseq.target import load_target


@pytest.fixture
def bundle(model: Path, tmp_path: Path) -> Path:
    """A bundle whose model file is gone."""
    target = load_target(str(model))
    data = [target.example_inputs]
    out = tmp_path / "net"
    fuseq.lower(target.model, target.example_inputs, out=out, calibration=data, check=False)
    model.unlink()
    return out


def test_the_page_lies_beside_the_bundle(run, bundle):
    before = {file.name: file.read_bytes() for file in bundle.iterdir()}
    answer = run("report", bundle)
    page = bundle.with_name("net.report.html")
    assert (answer.status, answer.stdout.strip()) == (0, str(page))
    assert "no limit broken" in answer.stderr
    assert page.read_text().startswith("<!doctype html>")
    assert {file.name: file.read_bytes() for file in bundle.iterdir()} == before
    assert sorted(file.name for file in bundle.parent.iterdir()) == ["net", "net.report.html"]


def test_the_document_holds_checks_and_size(run, bundle, tmp_path):
    page = tmp_path / "page.html"
    answer = run("report", bundle, "-o", page, "--json")
    assert answer.status == 0, answer.stderr
    assert answer.document["report"] == str(page)
    assert answer.document["bytes"] == page.stat().st_size
    assert answer.document["passed"] is True
    checks = {check["id"]: check for check in answer.document["checks"]}
    assert checks["golden"]["metrics"]["differing"] == 0


def test_overlays_lie_beside_the_page(run, bundle, tmp_path):
    options = ("--overlay", "model-explorer", "--overlay", "netron", "-o", tmp_path / "p.html")
    answer = run("report", bundle, *options)
    assert answer.status == 0, answer.stderr
    assert "--node_data_paths=" in answer.stderr
    names = {file.name for file in tmp_path.glob("p.*")}
    assert names == {"p.html", "p.sqnr_db.json", "p.cut_off.json", "p.error_steps.json", "p.onnx"}


def test_given_inputs_are_measured(run, bundle, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 3, 16, 16), np.float32))
    answer = run("report", bundle, "--inputs", tmp_path / "x.npz")
    assert answer.status == 0, answer.stderr
    assert "the given inputs" in bundle.with_name("net.report.html").read_text()
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 5, 16, 16), np.float32))
    assert run("report", bundle, "--inputs", tmp_path / "x.npz").code == "FQ005"
    assert run("report", bundle, "--inputs", tmp_path / "no.npz").code == "FQ006"


def test_only_an_older_report_is_replaced(run, bundle, tmp_path):
    page = tmp_path / "page.html"
    assert run("report", bundle, "-o", page).status == 0
    assert run("report", bundle, "-o", page).status == 0
    page.write_text("<!doctype html><title>my thesis</title>")
    assert run("report", bundle, "-o", page).code == "FQ008"
    assert "thesis" in page.read_text()
    assert run("report", bundle, "-o", tmp_path / "model.py").code == "FQ008"
    assert run("report", bundle, "-o", tmp_path / "nowhere" / "page.html").code == "FQ008"
    (tmp_path / "folder.html").mkdir()
    assert run("report", bundle, "-o", tmp_path / "folder.html").code == "FQ008"


def test_what_is_no_bundle_is_refused(run, bundle, tmp_path):
    assert run("report", tmp_path).code == "FQ013"
    (bundle / "lineage.json").write_text("{}")
    assert run("report", bundle).code == "FQ013"
    assert not bundle.with_name("net.report.html").exists()


def test_a_changed_file_is_a_failed_check(run, bundle):
    file = bundle / "model.int8.qdq.onnx"
    file.write_bytes(file.read_bytes() + b"\x3a\x00")
    answer = run("report", bundle, "--json")
    assert answer.document["passed"] is False
    assert "failed: " in answer.stderr


def test_an_interruption_leaves_the_older_page(run, bundle, tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    assert run("report", bundle, "-o", page).status == 0
    before = page.read_bytes()

    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device")

    def interrupted(findings: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", full)
    assert run("report", bundle, "-o", page).code == "FQ008"
    monkeypatch.setattr("fuseq.report.write.render", interrupted)
    assert run("report", bundle, "-o", page).status == 130
    assert page.read_bytes() == before
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".page")]


def test_lower_names_the_next_command(run, model, tmp_path):
    answer = run("lower", model, "-b", "onnx", "-o", tmp_path / "b")
    assert f"next: fuseq report {tmp_path / 'b'}" in answer.stderr
