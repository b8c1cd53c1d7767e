"""`fuseq explain`: every code has words, and torch is imported only where a backend is asked."""

import subprocess
import sys

import pytest

from fuseq import plugins
from fuseq.affine.refusal import CODES as REFUSALS
from fuseq.errors import CODES


@pytest.mark.parametrize("code", CODES)
def test_every_error_has_a_section(run, code):
    answer = run("explain", code.lower(), "--json")
    assert answer.status == 0, answer.stderr
    title, status = CODES[code]
    document = answer.document
    assert (document["code"], document["title"], document["exit_code"]) == (code, title, status)
    assert document["text"].startswith(f"## {code}: {title}\n\n")
    assert len(document["text"].splitlines()[2]) > 20


@pytest.mark.parametrize("code", REFUSALS)
def test_every_reason_to_stay_apart_is_explained(run, code):
    text = run("explain", code).stdout
    assert text.startswith(f"{code}: {REFUSALS[code]}")
    assert "\nhelp: " in text


def test_codes_of_backends_are_explained(run):
    codes = plugins.load("backends", "qnn").codes
    assert len(codes) >= 20
    for code, text in codes.items():
        assert run("explain", code).stdout == f"{code}: {text}\n"


@pytest.mark.parametrize(
    ("code", "close"),
    [("FQ1O1", "FQ101"), ("fq3O1", "FQ301"), ("QN203", "QNN203"), ("rings", "ring")],
)
def test_a_close_code_is_suggested(run, code, close):
    answer = run("explain", code)
    assert (answer.status, answer.code) == (2, "FQ007")
    assert f"did you mean '{close}'?" in answer.stderr


def test_a_backend_that_cannot_be_loaded_does_not_matter(run, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fuseq.backends]\nbroken = no_such_module:Backend\n")
    assert run("explain", "QNN101").status == 0


@pytest.mark.parametrize(("code", "status"), [("FQ101", 0), ("ring", 0), ("FQ999", 2)])
def test_torch_is_not_imported(code, status):
    code = (
        f"import sys; sys.argv = ['fuseq', 'explain', '{code}']\n"
        "from fuseq.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n"
        f"    assert end.code == {status}\n"
        "assert not {'torch', 'numpy', 'onnx'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
