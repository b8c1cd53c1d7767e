"""Reports of checks whose names come from a model that nobody vouches for."""

from __future__ import annotations

import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import fuseq
from fuseq.cli.annotations import WORST, annotation_lines, source_path
from fuseq.cli.check_tables import checks_table, verdict
from fuseq.cli.junit import junit_xml
from fuseq.cli.markdown import LARGEST, markdown_page
from fuseq.cli.streams import message
from fuseq.equivalence.result import Check, CheckResult, Divergence, Layer
from fuseq.whole_file import write_whole

EVIL = (
    "y\"'><script>alert(1)</script>]]>&amp;\x00\x0b\x1b[31m\ud800\ufffe\n"
    "::error file=x,line=1::hi\r\n| a | b |\n`code` @user ![x](http://example.com) "
    "%0A::warning::\u2028end|"
)


def evil_check() -> Check:
    wrong = Divergence(EVIL, f"{EVIL}.py:3")
    metrics, gate = {EVIL: 1.0, "sqnr_db": 3.0}, {"sqnr_db_min": 28.0}
    return Check(EVIL, EVIL, "fidelity", metrics, gate, False, EVIL, EVIL, EVIL, divergence=wrong)


def test_xml_is_well_formed_and_says_what_was_said() -> None:
    text = junit_xml({EVIL: [evil_check()]})
    root = ElementTree.fromstring(text.encode())
    [case] = root.iter("testcase")
    assert "<script>alert(1)</script>" in case.get("name", "")
    assert [element.tag for element in root.iter()] == [
        "testsuites", "testsuite", "testcase", "failure",
    ]  # fmt: skip
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", text)


def test_a_page_has_its_rows_and_nothing_else() -> None:
    layers = {EVIL: [Layer(EVIL, EVIL, 30.0, None, 3, 9)]}
    page = markdown_page({EVIL: [evil_check()]}, layers)
    lines = page.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert [row.count("|") for row in rows] == [9, 9, 9, 6, 6, 6]
    assert page.count("\n") == len(lines)
    [check] = [row for row in rows if "FAILED" in row]
    outside = re.sub("`[^`]*`", "", page)
    assert "<" not in outside
    assert "@" not in outside
    assert "](" not in outside
    assert check.count("`") % 2 == 0


def test_a_page_is_cut_to_what_a_summary_holds() -> None:
    few = [Check(f"{k}-{'x' * 1000}", "a", "parity", {}, {}, k > 2) for k in range(3000)]
    page = markdown_page({"many": few}, {})
    assert LARGEST - 2000 < len(page.encode()) <= LARGEST
    assert page.count("FAILED") == 3
    assert re.search(r"\n\d+ more lines had no room\.\n$", page)
    assert markdown_page({"many": few}, {}, room=50) == ""


def test_an_annotation_is_one_command(tmp_path: Path) -> None:
    lines = annotation_lines({EVIL: [evil_check()]}, [], tmp_path)
    [line] = lines
    assert line.splitlines() == [line]
    assert re.fullmatch(r"::error file=[^,:]*,line=3,title=[^,:]*::.*", line)
    assert "%250A" in line  # what looked like an escape is none


def test_the_ten_worst_are_annotated(tmp_path: Path) -> None:
    checks = [
        Check(
            f"c{k}", "a", "exact", {"max_rel": float(k)}, {"max_rel": 1.0}, False,
            divergence=Divergence(f"n{k}", f"model.py:{k}"),
        )
        for k in range(2, 30)
    ]  # fmt: skip
    lines = annotation_lines({"all": checks}, [], tmp_path)
    assert [int(re.findall(r"line=(\d+)", line)[0]) for line in lines] == [*range(29, 19, -1)]
    assert len(lines) == WORST
    twice = [checks[0], checks[0]]
    assert len(annotation_lines({"all": twice}, [], tmp_path)) == 1


def test_a_source_file_is_found_below_the_root(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "model.py").touch()
    assert source_path("model.py", [], tmp_path) == "src/model.py"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.py").touch()
    assert source_path("model.py", [], tmp_path) == "model.py"
    named = [f"{tmp_path / 'other' / 'model.py'}:make"]
    assert source_path("model.py", named, tmp_path) == "other/model.py"
    assert source_path("gone.py", [], tmp_path) == "gone.py"


def test_no_name_starts_a_line_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    check = evil_check()
    result = CheckResult((check,), check.divergence)
    message(checks_table(result))
    message(verdict(result))
    printed = capsys.readouterr().err
    assert not [line for line in printed.splitlines() if line.startswith("::")]
    assert "\x1b" not in printed


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "report.xml"
    write_whole(file, "first")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(file, "second")
    monkeypatch.undo()
    assert file.read_text() == "first"
    assert os.listdir(tmp_path) == ["report.xml"]
    write_whole(file, "second")
    assert file.read_text() == "second"
    with pytest.raises(fuseq.FuseqError, match="FQ008"):
        write_whole(tmp_path / "no" / "place.xml", "")
