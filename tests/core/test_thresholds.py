"""Thresholds files: read strictly, and updated without touching anything else."""

from __future__ import annotations

from pathlib import Path

import pytest

import fuseq
from fuseq.equivalence.limits import Limits
from fuseq.equivalence.result import Check
from fuseq.equivalence.threshold_update import difference, updated
from fuseq.equivalence.thresholds import read_thresholds

GOOD = """
# limits
[[check]]
id = "a"  # first
ref = "torch:model.py:make"
cand = ["x.onnx", "package.module:factory"]
inputs = "natural"
samples = 2
seed = 7
layout = ["nhwc", "x.onnx=nchw"]
sqnr_db = 28.0      # dB
lsb_max = { y = 4, "z.1" = 0 }
within_1lsb = 0.99
data_range = [0, 1]
metric_drop = { psnr = 0.15 }
layers = true

[[check]]
id = "b"
ref = "."
max_rel = 1e-5
"""


def written(place: Path, text: str) -> Path:
    file = place / "fuseq.check.toml"
    file.write_text(text)
    return file


def test_reading(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").touch()
    first, second = read_thresholds(written(tmp_path, GOOD))
    assert first.ref == f"{tmp_path / 'model.py'}:make"
    assert first.cands == (str(tmp_path / "x.onnx"), "package.module:factory")
    assert (first.inputs, first.samples, first.seed, first.layers) == ("natural", 2, 7, True)
    assert first.layouts == {"": "nhwc", "x.onnx": "nchw"}
    assert first.limits == Limits(
        sqnr_db=28.0,
        max_lsb={"y": 4, "z.1": 0},
        within_1lsb=0.99,
        data_range=(0.0, 1.0),
        metric_drop={"psnr": 0.15},
    )
    assert first.limits.of("y") == {"sqnr_db": 28.0, "max_lsb": 4, "within_1lsb": 0.99}
    assert (second.id, second.cands, second.inputs) == ("b", (), None)
    assert second.limits.of("anything") == {"max_rel": 1e-5}


WRONG = {
    "no TOML": ("[[check]]\nid = ", "no TOML"),
    "an unknown table": ('[[checks]]\nid = "a"\nref = "b"', "unknown key `checks`"),
    "an unknown key": ('[[check]]\nid = "a"\nref = "b"\nsqnr = 3', "did you mean 'sqnr_db'?"),
    "no id": ('[[check]]\nref = "b"', "check 1, id"),
    "no reference": ('[[check]]\nid = "a"', "check 1, ref"),
    "an empty id": ('[[check]]\nid = ""\nref = "b"', "`id` is ''"),
    "two of one id": ('[[check]]\nid = "a"\nref = "b"\n' * 2, "two checks have the id 'a'"),
    "a limit in words": ('[[check]]\nid = "a"\nref = "b"\nsqnr_db = "28"', "check 'a', sqnr_db"),
    "a limit that is true": (
        '[[check]]\nid = "a"\nref = "b"\nmax_lsb = true',
        "check 'a', max_lsb",
    ),
    "no number": ('[[check]]\nid = "a"\nref = "b"\nmax_rel = nan', "check 'a', max_rel"),
    "a limit without outputs": ('[[check]]\nid = "a"\nref = "b"\nmax_lsb = {}', "max_lsb"),
    "a word for an output": ('[[check]]\nid = "a"\nref = "b"\nmax_lsb = {y = "4"}', "max_lsb"),
    "a range backwards": ('[[check]]\nid = "a"\nref = "b"\ndata_range = [1, 0]', "data_range"),
    "half a range": ('[[check]]\nid = "a"\nref = "b"\ndata_range = [1]', "data_range"),
    "half a sample": ('[[check]]\nid = "a"\nref = "b"\nsamples = 0.5', "samples"),
    "no sample": ('[[check]]\nid = "a"\nref = "b"\nsamples = 0', "samples"),
    "a number for a file": ('[[check]]\nid = "a"\nref = "b"\ncand = [3]', "cand"),
    "no candidates": ('[[check]]\nid = "a"\nref = "b"\ncand = []', "cand"),
    "an unknown layout": ('[[check]]\nid = "a"\nref = "b"\nlayout = "hwc"', "check 'a', layout"),
    "a drop of nothing": ('[[check]]\nid = "a"\nref = "b"\nmetric_drop = 0.1', "metric_drop"),
    "a check that is none": ("check = 3", "`check` is 3"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_what_is_wrong_is_named_by_file_and_key(name: str, tmp_path: Path) -> None:
    text, said = WRONG[name]
    with pytest.raises(fuseq.FuseqError) as caught:
        read_thresholds(written(tmp_path, text))
    assert caught.value.code == "FQ012"
    assert said in str(caught.value)
    assert "fuseq.check.toml" in str(caught.value)


def test_nothing_to_compare_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(fuseq.FuseqError, match="FQ009"):
        read_thresholds(written(tmp_path, "# none yet\n"))


def measured(output: str, **metrics: float) -> Check:
    return Check("x", "a <-> b", "fidelity", metrics, {}, True, output=output)


def test_updating_changes_numbers_and_nothing_else() -> None:
    checks = {
        "a": [
            measured("y", sqnr_db=31.23456, max_lsb=2, within_1lsb=0.987654),
            measured("z.1", sqnr_db=30.98765, max_lsb=1, within_1lsb=1.0),
            measured("", psnr=30, psnr_drop=0.0123456),
        ],
        "b": [measured("y", max_rel=3.00021e-7)],
    }
    text = updated(Path("t.toml"), GOOD, checks)
    expected = (
        GOOD.replace("sqnr_db = 28.0  ", "sqnr_db = 30.98  ")
        .replace("{ y = 4, ", "{ y = 2, ")
        .replace('"z.1" = 0 ', '"z.1" = 1 ')
        .replace("within_1lsb = 0.99", "within_1lsb = 0.9876")
        .replace("psnr = 0.15", "psnr = 0.01235")
        .replace("1e-5", "3.001e-07")
    )
    assert text == expected
    changed = [line for line in difference(Path("t.toml"), GOOD, text).splitlines()]
    assert changed[:2] == ["--- t.toml", "+++ t.toml (measured)"]
    assert sum(line.startswith("+") for line in changed[2:]) == 5
    assert updated(Path("t.toml"), GOOD, {}) == GOOD


@pytest.mark.parametrize("limit", ["sqnr_db.y = 3", "[check.sqnr_db]\ny = 3", '"sqnr_db" = 3'])
def test_a_limit_that_cannot_be_updated_in_place_is_refused(limit: str) -> None:
    text = f'[[check]]\nid = "a"\nref = "b"\n{limit}\n'
    with pytest.raises(fuseq.FuseqError, match="FQ012"):
        updated(Path("t.toml"), text, {"a": [measured("y", sqnr_db=9.0)]})
