"""What a terminal and a notebook show, and that no text of a model becomes markup."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
import torch
from torch import Tensor, nn

import fuseq
from fuseq import display
from fuseq.bundle import Bundle, read_bundle
from fuseq.equivalence.result import Check, CheckResult, Divergence

ATTACK = "<script>alert('x')</script><img src=x onerror=alert(1)>\"' onload='y"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(x) + self.b(x))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def program(x: Tensor) -> fuseq.Program:
    torch.manual_seed(0)
    return fuseq.capture(Net(), x)


@pytest.fixture
def bundle(program: fuseq.Program, x: Tensor, tmp_path) -> Bundle:
    return fuseq.lower(program, out=tmp_path / "net", calibration=[x])


class Parser(HTMLParser):
    """Tags, their attributes, and text, of a fragment whose tags are all closed."""

    def __init__(self, fragment: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(fragment)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_a_terminal_gets_one_line(program, bundle):
    fused = fuseq.fuse(program)
    assert repr(program) == (
        "<Program Net: 4 operations (2 conv2d, 1 add, 1 relu), 128 parameters, float>"
    )
    assert repr(fused).startswith("<Program Net: 2 operations (1 conv2d, 1 relu)")
    assert repr(bundle.program).endswith("integers for onnx>")
    assert repr(bundle).startswith(f"<Bundle {bundle.path} for onnx: ")
    assert "model.int8.qdq.onnx (int8)" in repr(bundle)
    assert repr(bundle).endswith("checks passed>")
    assert repr(bundle.result) == f"<CheckResult: {len(bundle.result.checks)} checks passed>"
    assert "\n" not in repr(program) + repr(bundle) + repr(bundle.result)


def test_a_result_says_where_it_starts_to_be_wrong():
    check = Check("parity", "a <-> b", "parity", {"differing": 3}, {"differing": 0}, False)
    result = CheckResult((check,), Divergence("conv", "model.py:7"))
    expected = "1 of 1 checks failed, first 'parity', first wrong node `conv` model.py:7"
    assert repr(result) == f"<CheckResult: {expected}>"
    assert expected in Parser(result._repr_html_()).words
    assert repr(CheckResult(())) == "<CheckResult: nothing was compared>"


def test_a_notebook_gets_tables_and_the_graph(program, bundle):
    shown = Parser(bundle.program._repr_html_())
    assert "svg" in shown.tags
    assert {"Net", "1 conv2d, 1 relu", "onnx"} <= set(shown.words)
    assert any("fuse-affine (" in words for words in shown.words)
    words = set(Parser(bundle._repr_html_()).words)
    assert {"model.int8.qdq.onnx", "int8", "onnx", *(c.id for c in bundle.result.checks)} <= words
    reread = Parser(read_bundle(bundle.path)._repr_html_())
    assert "model.int8.qdq.onnx" in reread.words
    assert "passed" in Parser(bundle.result._repr_html_()).words


def attacked(program: fuseq.Program, bundle: Bundle) -> Iterator[object]:
    """The same things with markup wherever a model or a file gives the text."""
    hostile = program.clone()
    hostile.input_names = (ATTACK,)
    hostile.output_names = (ATTACK,)
    kind = type(ATTACK, (Net,), {})
    hostile.origin = dataclasses.replace(program.origin, module=kind())
    for node in hostile.graph.nodes:
        node.meta["source"] = ATTACK
        node.meta["scope"] = ATTACK
    yield hostile
    check = Check(ATTACK, ATTACK, "parity", {ATTACK: 1}, {ATTACK: 0}, False, ATTACK)
    result = CheckResult((check,), Divergence(ATTACK, ATTACK))
    yield result
    entry = {"name": ATTACK, "shape": [1, 2], "dtype": ATTACK, "layout": ATTACK}
    manifest = {
        "backend": ATTACK,
        "files": [{"path": ATTACK, "kind": ATTACK, "sha256": ATTACK}],
        "inputs": [entry],
        "outputs": [entry],
    }
    yield Bundle(bundle.path, manifest, result)


def test_no_text_of_a_model_becomes_markup(program, bundle):
    allowed = {*"table thead tbody tr th td p b details summary svg style rect text".split()}
    allowed |= {*"g path title line polyline circle a".split()}
    for hostile in attacked(program, bundle):
        shown = Parser(hostile._repr_html_())  # type: ignore[attr-defined]
        assert set(shown.tags) <= allowed
        assert not [name for name in shown.attributes if name.startswith("on")]
        assert any(ATTACK in words for words in shown.words)
        assert "<script" in repr(hostile)  # a terminal shows it as it is


def test_a_long_graph_is_not_drawn(program, monkeypatch):
    monkeypatch.setattr(display, "LARGEST_GRAPH", 3)
    shown = Parser(program._repr_html_())
    assert "svg" not in shown.tags
    assert "no drawing of 4 operations" in shown.words
