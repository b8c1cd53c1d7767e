"""Our backends keep the contract, and each of its tests catches a backend that does not."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from fuseq import ops, plugins
from fuseq.backend import Artifact, Backend, Refusal, Runner
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.quant.profile import Profile
from fuseq.testing import BackendContract, small_networks


class TestOnnx(BackendContract):
    backend = plugins.load("backends", "onnx")()


class TestOnnxWithOptions(BackendContract):
    backend = plugins.load("backends", "onnx")(opset=21, io="integer")


class TestTflite(BackendContract):
    backend = plugins.load("backends", "tflite")()


class TestQnn(BackendContract):
    backend = plugins.load("backends", "qnn")()


OURS = plugins.load("backends", "onnx")
count = iter(range(10**6))


class WrongRunner(Runner):
    """Shows other integers than the file's."""

    name = "onnx"

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.runtime, self.note, self.quantized = "wrong", "", runner.quantized
        self.shapes, self.dtypes = runner.shapes, runner.dtypes

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        return self.runner(*inputs)

    def integers(self, *inputs: np.ndarray) -> Mapping[str, np.ndarray]:
        return {name: x + (x < 100) for name, x in self.runner.integers(*inputs).items()}


@dataclass(frozen=True)
class Faulty(Backend):
    """Our ONNX backend with one fault."""

    name: ClassVar[str] = "onnx"
    pipeline: ClassVar[str] = OURS.pipeline
    profile: ClassVar[Profile] = OURS.profile
    fault: str = ""

    def refusals(self, program: Program) -> list[Refusal]:
        elus = [n.name for n in program.graph.nodes if "elu" in ops.name_of(program, n)]
        elus = [name for name in elus if "relu" not in name]
        gates = [n.name for n in program.graph.nodes if ops.name_of(program, n) == "sigmoid"]
        found = {"refuses one at a time": elus[:1], "refuses gates": gates, "": []}
        reason = "no kernel" if self.fault != "gives no reason" else ""
        found["gives no reason"] = elus
        return [Refusal(name, "", reason, "leave it out") for name in found.get(self.fault, [])]

    def lower(self, program: Program, out: Path) -> list[Artifact]:
        if self.fault == "cannot lower gates" and any(
            "sigmoid" in n.name for n in program.graph.nodes
        ):
            raise FuseqError("FQ507", "no sigmoid in this format")
        written: list[Artifact] = OURS().lower(program, out)
        if self.fault == "edits the program":
            next(iter(program.module.parameters())).data.add_(1)
        if self.fault == "forgets a file":
            (out / "notes.txt").write_text("unlisted")
        if self.fault == "writes elsewhere":
            Path("notes.txt").write_text("elsewhere")
        if self.fault == "leaves temporary files":
            os.close(tempfile.mkstemp(dir=tempfile.gettempdir())[0])
        if self.fault in ("differs each time", "tells its place"):
            told = str(next(count)) if self.fault == "differs each time" else str(out)
            (out / "notes.txt").write_text(told)
            written.append(Artifact("notes.txt", "notes"))
        return written

    def runner(self, file: Path) -> Runner:
        if self.fault == "reads anything":
            return WrongRunner.__new__(WrongRunner)
        runner: Runner = OURS().runner(file)
        return WrongRunner(runner) if self.fault == "shows other integers" else runner


def contract(backend: Backend, **attributes: Any) -> type[BackendContract]:
    """A contract on two networks."""

    class Here(BackendContract):
        @classmethod
        def networks(cls):
            chosen = small_networks()
            return {name: chosen[name] for name in ("Plain", "Gated")}

    for name, value in {"backend": backend, **attributes}.items():
        setattr(Here, name, value)
    return Here


@contextmanager
def prepared(kind: type[BackendContract]) -> Iterator[BackendContract]:
    kind.setup_class()
    try:
        yield kind()
    finally:
        kind.teardown_class()


def failures(kind: type[BackendContract]) -> dict[str, str]:
    """Names of the tests that fail, with what they say."""
    found = {}
    with prepared(kind) as made:
        for name in (name for name in dir(made) if name.startswith("test_")):
            try:
                getattr(made, name)()
            except AssertionError as error:
                found[name.removeprefix("test_")] = str(error)
    return found


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_right_backend_fails_nothing():
    assert failures(contract(Faulty())) == {}


@pytest.mark.parametrize(
    ("fault", "test", "words"),
    [
        ("refuses one at a time", "it_refuses_everything_at_once", "it names only ['elu']"),
        ("gives no reason", "it_refuses_everything_at_once", "no reason or no fix"),
        ("refuses gates", "its_refusals_are_complete", "not named in `refuses`"),
        ("cannot lower gates", "its_refusals_are_complete", "refuses nothing and then fails"),
        ("edits the program", "it_leaves_the_program_as_it_is", "it edits the program"),
        ("forgets a file", "it_lists_every_file_and_writes_nowhere_else", "it lists"),
        ("writes elsewhere", "it_lists_every_file_and_writes_nowhere_else", "notes.txt"),
        ("leaves temporary files", "it_lists_every_file_and_writes_nowhere_else", "it wrote"),
        ("differs each time", "it_writes_the_same_bytes_again", "notes.txt"),
        ("tells its place", "its_files_hold_no_path_of_this_machine", "notes.txt"),
        ("shows other integers", "every_check_of_a_lowering_passes", "error[FQ302]"),
    ],
)
def test_each_fault_is_caught(fault, test, words):
    assert words in failures(contract(Faulty(fault)))[test]


def test_a_runner_that_reads_anything_is_caught():
    with prepared(contract(Faulty())) as made:
        made.backend = Faulty("reads anything")  # type: ignore[misc]
        with pytest.raises(AssertionError, match="no error for a damaged file"):
            made.test_its_runner_refuses_what_is_no_file_of_its()


def test_an_int8_file_that_nothing_compares_is_caught():
    class Silent(Faulty):
        """Runs nothing."""

        def runners(self, file: Path) -> Mapping[str, Runner]:
            return {}

    found = failures(contract(Silent()))
    assert (
        "no integer of the int8 file was compared"
        in (found["its_runner_shows_the_integers_of_the_executor"])
    )


def test_nothing_stays_behind(tmp_path):
    before = set(Path(tempfile.gettempdir()).glob("backend-contract-*"))
    failures(contract(Faulty()))
    assert set(Path(tempfile.gettempdir()).glob("backend-contract-*")) == before
    assert not list(tmp_path.iterdir())


def test_an_announced_refusal_that_does_not_come_is_caught():
    found = failures(contract(Faulty(), refuses=frozenset({"Gated"})))
    assert "not refused: Gated" in found["its_refusals_are_complete"]
    assert failures(contract(Faulty("refuses gates"), refuses=frozenset({"Gated"}))) == {}
