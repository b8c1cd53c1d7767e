"""Passes and backends from their spelling."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest

import fuseq
from fuseq import plugins
from fuseq.errors import FuseqError
from fuseq.pass_spec import parse_as, parse_backend, parse_passes


@dataclass(frozen=True)
class Sample(fuseq.Pass):
    """A pass with an option of every kind."""

    name: ClassVar[str] = "sample"
    promise: ClassVar[fuseq.Promise] = fuseq.NewFunction("a test")
    level: int = 1
    rate: float = 0.5
    on: bool = False
    label: str = "a"
    kind: Literal["x", "y"] = "x"
    nodes: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    data: Any = field(default=None, repr=False)

    def run(self, program: fuseq.Program) -> int:
        return 0


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    load = plugins.load
    chosen = lambda kind, name: Sample if name == "sample" else load(kind, name)  # noqa: E731
    monkeypatch.setattr(plugins, "load", chosen)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", Sample()),
        ("{}", Sample()),
        ("{level=3}", Sample(level=3)),
        ("{rate=2}", Sample(rate=2.0)),
        ("{rate=1e-3,on=true}", Sample(rate=1e-3, on=True)),
        ("{label=word}", Sample(label="word")),
        ('{label="a, {b}"}', Sample(label="a, {b}")),
        ("{kind=y}", Sample(kind="y")),
        ('{nodes=("a","b"),level=2}', Sample(nodes=("a", "b"), level=2)),
        ("{size=(3, 4)}", Sample(size=(3, 4))),
        ("{size=none}", Sample(size=None)),
    ],
)
def test_options_take_their_fields_types(options, expected):
    assert parse_passes(f" sample{options} ") == [expected]


@pytest.mark.parametrize(
    "step",
    [
        Sample(level=2, rate=0.25, on=True),
        Sample(nodes=("a", "b"), size=(1, 2)),
        Sample(kind="y"),
        *(Sample(label=label) for label in ("a, {b}", "3", "true", "two words", "it's", "")),
    ],
)
def test_spelling_comes_back(step):
    assert parse_passes(step.spelled()) == [step]
    assert parse_as("passes", Sample, step.spelled()) == step


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("{levle=3}", "did you mean 'level'?"),
        ("{level=3.5}", "takes int, not 3.5"),
        ("{level=yes}", "takes int, not yes"),
        ("{on=1}", "takes bool, not 1"),
        ("{kind=z}", "not z"),
        ("{size=(1,2,3)}", "not (1,2,3)"),
        ("{level}", "cannot read the option 'level'"),
        ("{level=3", "left open"),
        ("{data=3}", "no option 'data'"),
        ("}level{", "cannot read"),
    ],
)
def test_bad_options_are_refused(options, part):
    with pytest.raises(FuseqError) as caught:
        parse_passes(f"sample{options}")
    assert caught.value.code == "FQ012"
    assert part in str(caught.value)


def test_order_is_kept_and_data_is_filled():
    steps = parse_passes("sample{level=2},fuse-affine,sample", data="images", profile="unused")
    assert [step.name for step in steps] == ["sample", "fuse-affine", "sample"]
    assert [getattr(step, "data", None) for step in steps] == ["images", None, "images"]


def test_a_backend_has_options_too():
    backend = parse_backend("onnx{opset=21}")
    assert (backend.name, getattr(backend, "opset", None)) == ("onnx", 21)
    with pytest.raises(FuseqError, match="did you mean 'opset'"):
        parse_backend("onnx{opste=21}")
