"""The page holds what was found, whatever the bundle, and nothing of it becomes markup."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import fuseq
from fuseq.bundle import Bundle, read_bundle
from fuseq.pass_spec import parse_backend
from fuseq.report.find import find
from fuseq.report.page import Findings, render
from tests.report.hostile import HOSTILE, hostile_findings
from tests.report.pages import require_harmless


@pytest.fixture(scope="module")
def findings(enlarging: Path) -> Findings:
    return find(read_bundle(enlarging))


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", " ".join(require_harmless(page).shown))


def test_a_page_shows_all_its_parts(findings: Findings) -> None:
    page = render(findings)
    text = text_of(page)
    assert "enlarge Enlarge for onnx, int8" in text
    assert "checks, no limit broken" in text
    for part in ("Checks", "Outputs", "Graphs", "Values on a grid", "Fusion", "Costs", "Origin"):
        assert part in text
    for entry in findings.bundle.manifest["files"]:
        assert entry["sha256"] in text
    assert "becomes part of fused" in text
    assert "conftest.py:" in text
    assert page.count("<svg") == 2 + sum(1 + (v.channels is not None) for v in findings.values)
    assert len(re.findall(r"<details id=\"value-\d+\"", page)) == len(findings.values)


def test_measured_numbers_stand_beside_their_limits(findings: Findings) -> None:
    rows = {row.id: row for row in findings.verdict.rows}
    assert rows["fused-f64"].state == "recorded"
    assert rows["int8-vs-float"].state == "reported"
    assert rows["table"].limits["differing"] == 0
    parity = next(row for name, row in rows.items() if name.startswith("parity") and row.measured)
    assert parity.measured["differing"] == 0
    assert parity.measured["total"] > 10_000
    assert f"{parity.measured['total']:,}" in text_of(render(findings))


def test_values_come_worst_first_with_their_weights(findings: Findings) -> None:
    decibels = [value.statistics.sqnr_db for value in findings.values]
    assert decibels == sorted(decibels)
    by_layer = {value.channels.layer: value for value in findings.values if value.channels}
    assert set(by_layer) == {"stem", "fused", "head"}
    channels = by_layer["head"].channels
    assert channels is not None
    reach = np.maximum(np.abs(channels.lows), np.abs(channels.highs))
    assert len(channels.lows) == 12
    assert np.allclose(reach, channels.limits, rtol=1e-5)
    for value in findings.values:
        histogram = value.histogram
        assert histogram.low <= histogram.clip_low < histogram.clip_high <= histogram.high
        assert sum(histogram.counts) > 0


def test_images_are_shown_for_image_models(findings: Findings) -> None:
    read = require_harmless(render(findings))
    images = [attributes for tag, attributes in read.tags if tag == "img"]
    assert [image["width"] for image in images if "src" in image] == ["32", "64", "64", "64"]
    assert sum("data-same" in image for image in images) == 2
    assert "input image, 32 × 32" in read.shown


def test_a_classifier_shows_its_largest_values(classifying: Path) -> None:
    page = render(find(read_bundle(classifying)))
    text = text_of(page)
    assert "largest values" in text
    assert "for tflite, int8" in text
    assert "data-same" not in page.partition("<script>")[0]


def test_a_float_bundle_has_no_values(in_float: Path) -> None:
    found = find(read_bundle(in_float))
    text = text_of(render(found))
    assert found.values == []
    assert "Values on a grid" not in text
    assert found.verdict.passed


def test_given_inputs_are_measured_instead(enlarging: Path, findings: Findings) -> None:
    black = np.zeros((1, 3, 24, 40), np.float32)
    found = find(read_bundle(enlarging), (black,))
    assert found.inputs_are == "the given inputs"
    assert found.outputs.real[0].shape == (1, 3, 48, 80)
    assert found.values[0].statistics != findings.values[0].statistics
    with pytest.raises(fuseq.FuseqError, match="FQ005"):
        find(read_bundle(enlarging), (np.zeros((1, 4, 24, 40), np.float32),))


def test_a_failed_check_is_named(enlarging: Path, tmp_path: Path) -> None:
    manifest = json.loads((enlarging / "fuseq.json").read_text())
    manifest["checks"][0]["passed"] = False
    found = find(Bundle(enlarging, manifest))
    assert not found.verdict.passed
    assert [row.id for row in found.verdict.failed] == ["fused-f64"]
    text = text_of(render(found))
    assert re.search(r"failed 1 of \d+ checks: fused-f64", text)
    assert "failed when the bundle was lowered" in text


def test_a_bundle_of_an_older_version_is_refused(enlarging: Path) -> None:
    manifest = json.loads((enlarging / "fuseq.json").read_text())
    manifest["files"] = [f for f in manifest["files"] if f["kind"] != "lineage"]
    with pytest.raises(fuseq.FuseqError, match=r"FQ013.*no lineage"):
        find(Bundle(enlarging, manifest))


def test_a_bundle_without_its_program_shows_what_it_can(enlarging: Path) -> None:
    manifest = json.loads((enlarging / "fuseq.json").read_text())
    manifest["files"] = [f for f in manifest["files"] if f["kind"] != "program"]
    found = find(Bundle(enlarging, manifest))
    assert found.values == []
    assert "as captured" in text_of(render(found))


def test_no_text_of_a_bundle_becomes_markup(findings: Findings) -> None:
    read = require_harmless(render(hostile_findings(findings)))
    assert sum(HOSTILE in text for text in read.shown) > 30
    assert not any("onerror" in attributes or "onload" in attributes for _, attributes in read.tags)


def test_a_file_of_another_size_is_replaced_by_our_integers(
    enlarging: Path, tmp_path: Path
) -> None:
    program = read_bundle(enlarging).lowered_program()
    assert program is not None
    x = program.example_inputs[0]
    fixed = fuseq.lower(
        program, x, backend=parse_backend("onnx{dynamic=false}"), out=tmp_path / "b", check=False
    )
    small = np.random.default_rng(0).random((1, 3, 20, 24), dtype=np.float32)
    found = find(read_bundle(fixed.path), (small,))
    assert found.outputs.by == "our executor of the same integers"
    same = find(read_bundle(enlarging), (small,))
    assert found.outputs.shipped is not None
    assert same.outputs.shipped is not None
    assert np.array_equal(found.outputs.shipped[0], same.outputs.shipped[0])
    assert [v.statistics for v in found.values] == [v.statistics for v in same.values]
