"""Manifests that are damaged: each a coded error, whichever command meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fuseq
from fuseq.bundle import MANIFEST, read_bundle, staged

Damage = Callable[[dict[str, Any]], Any]

DAMAGE: dict[str, Damage] = {
    "no inputs": lambda m: m.pop("inputs"),
    "no backend": lambda m: m.pop("backend"),
    "no islands": lambda m: m.pop("float_islands"),
    "files of numbers": lambda m: m.update(files=[1]),
    "a file without a kind": lambda m: m["files"][0].pop("kind"),
    "outputs a number": lambda m: m.update(outputs=3),
    "an input without a name": lambda m: m["inputs"][0].pop("name"),
    "a scale in words": lambda m: m["inputs"][0]["grid"].update(scale="small"),
    "another schema": lambda m: m.update(schema="fuseq/9"),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x = torch.rand(1, 3, 8, 8)
    out = tmp_path_factory.mktemp("bundles") / "b"
    return fuseq.lower(nn.Conv2d(3, 4, 3), x, out=out, calibration=[x], check=False).path


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_damaged_manifest_is_named(damage: str, bundle: Path, tmp_path: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert read_bundle(tmp_path).manifest == manifest
    DAMAGE[damage](manifest)
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(fuseq.FuseqError) as caught:
        read_bundle(tmp_path)
    assert caught.value.code == "FQ013"
    assert caught.value.fix


def put(out: Path, words: str, *, force: bool, meanwhile: str = "") -> None:
    """Stage a bundle; another one is staged and done meanwhile."""
    with staged(out, force) as stage:
        (stage / MANIFEST).write_text(words)
        if meanwhile:
            put(out, meanwhile, force=force)


def test_two_lowerings_at_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(fuseq.FuseqError, match="FQ008"):
        put(out, "slow", force=False, meanwhile="quick")
    assert (out / MANIFEST).read_text() == "quick"
    put(out, "slow", force=True, meanwhile="quick")
    assert (out / MANIFEST).read_text() == "slow"
    assert list(tmp_path.iterdir()) == [out]


def test_two_lowerings_at_the_same_instant(tmp_path: Path, monkeypatch) -> None:
    """Another bundle arrives just after the old one was moved away."""
    out, rename = tmp_path / "out", Path.rename
    put(out, "old", force=False)

    def renamed(self: Path, target: Path) -> Path:
        result = rename(self, target)
        if self == out:
            out.mkdir()
            (out / MANIFEST).write_text("other")
        return result

    monkeypatch.setattr(Path, "rename", renamed)
    with pytest.raises(fuseq.FuseqError, match=r"FQ008.*meanwhile"):
        put(out, "new", force=True)
    assert (out / MANIFEST).read_text() == "other"
    assert list(tmp_path.iterdir()) == [out]


def test_what_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(b"\xff\xfe{")
    with pytest.raises(fuseq.FuseqError, match="FQ013"):
        read_bundle(tmp_path)
