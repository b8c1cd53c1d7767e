"""What every backend is held to, whoever wrote it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fuseq
from fuseq.backend import Backend, Tool
from fuseq.bundle import Bundle
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.testing.assertion import require
from fuseq.testing.networks import Inputs, small_networks
from fuseq.testing.plugin_rules import (
    require_described,
    require_options_refused,
    require_spelling,
)
from fuseq.testing.snapshot import snapshot


@dataclass(frozen=True)
class Lowered:
    """What became of one network.

    Attributes:
        bundle: the checked bundle, or None.
        error: why there is none, or None.
    """

    bundle: Bundle | None
    error: FuseqError | None


class BackendContract:
    """Tests of one backend, on small networks and on yours.

    Every network is lowered once, before the first test, to a directory that goes afterwards.

    Attributes:
        backend: what to test.
        refuses: names of networks that the backend refuses, and is right to.
    """

    backend: ClassVar[Backend]
    refuses: ClassVar[frozenset[str]] = frozenset()
    place: ClassVar[Path]
    lowered: ClassVar[Mapping[str, Lowered]]

    @classmethod
    def networks(cls) -> Mapping[str, tuple[nn.Module, Inputs]]:
        """Models with their inputs, by name; override it to add some that the backend is for."""
        return small_networks()

    @classmethod
    def setup_class(cls) -> None:
        """Lower and check every network."""
        cls.place = Path(tempfile.mkdtemp(prefix="backend-contract-"))
        cls.lowered = {
            name: _lowered(cls.backend, model, inputs, cls.place / name)
            for name, (model, inputs) in cls.networks().items()
        }

    @classmethod
    def teardown_class(cls) -> None:
        """Delete what was written."""
        shutil.rmtree(cls.place)

    def test_it_is_a_frozen_dataclass_with_a_name_a_purpose_and_a_profile(self) -> None:
        """So that it has a spelling, and its files and its profile go by one name."""
        require_described(self.backend)
        name, profile = self.backend.name, self.backend.profile.name
        require(name == profile, f"backend '{name}' has the profile of '{profile}'")

    def test_its_spelling_gives_it_back(self) -> None:
        """`name{option=value}` is what the command line reads."""
        require_spelling("backends", self.backend)

    def test_unknown_options_are_refused(self) -> None:
        """With FQ012, before anything runs."""
        require_options_refused("backends", self.backend)

    def test_its_refusals_are_complete(self) -> None:
        """What it does not refuse it lowers; what it cannot lower it refuses, with FQ501."""
        refused = {name: each.error for name, each in self.lowered.items() if each.error}
        for name, error in refused.items():
            require(error.code == "FQ501", f"{name}: it refuses nothing and then fails\n{error}")
            require(name in self.refuses, f"{name} is refused and not named in `refuses`\n{error}")
        missing = sorted(self.refuses - refused.keys())
        require(not missing, f"named in `refuses` and not refused: {', '.join(missing)}")
        require(len(refused) < len(self.lowered), "it lowers no network: override `networks`")

    def test_it_refuses_everything_at_once(self) -> None:
        """Of two layers that are alike, it does not name the second only after the first went."""
        program = fuseq.capture(_TwoForeign(), torch.rand(1, 3, 8, 8))
        found = self.backend.refusals(program)
        names = [n.name for n in program.graph.nodes if n.target is F.elu or "elu" in n.name]
        named = {refusal.node for refusal in found} & set(names)
        require(len(named) in (0, len(names)), f"of {names} it names only {sorted(named)}")
        for refusal in found:
            said = f"{refusal.node}: {refusal.reason}; {refusal.fix}"
            require(bool(refusal.reason and refusal.fix), f"no reason or no fix: {said}")

    def test_every_check_of_a_lowering_passes(self) -> None:
        """Each stage against the one before, and each file on its runtime: see docs/checks.md."""
        for name, bundle in self._bundles():
            assert bundle.result is not None
            try:
                bundle.result.raise_for_status()
            except FuseqError as error:
                raise AssertionError(f"{name}: {error}") from None

    def test_its_runner_shows_the_integers_of_the_executor(self) -> None:
        """An int8 file that nothing compares with the executor is not known to be right."""
        for name, bundle in self._bundles():
            if bundle.file("int8") is None:
                continue
            assert bundle.result is not None
            parity = [check for check in bundle.result.checks if check.kind == "parity"]
            compared = sum(int(check.metrics.get("total", 0)) for check in parity)
            require(compared > 0, f"{name}: no integer of the int8 file was compared")

    def test_it_writes_the_same_bytes_again(self) -> None:
        """No timestamps, no order of a set, nothing of the machine."""
        for name, bundle in self._bundles():
            with _fresh() as again:
                self.backend.lower(_program(bundle), again)
                before, after = (_contents(place) for place in (bundle.path, again))
                changed = [file for file in after if before.get(file) != after[file]]
            require(not changed, f"{name}: other bytes in {', '.join(changed)}")

    def test_it_lists_every_file_and_writes_nowhere_else(self) -> None:
        """Not in the working directory, and nothing of its temporary files stays."""
        for name, bundle in self._bundles():
            with _fresh() as root, _working_in(root):
                (root / "out").mkdir()
                artifacts = self.backend.lower(_program(bundle), root / "out")
                written = {file.removeprefix("out/") for file in _contents(root)}
                inside = set(_contents(root / "out"))
            require(written == inside, f"{name}: it wrote {sorted(written - inside)}")
            listed = {artifact.path for artifact in artifacts}
            require(listed == inside, f"{name}: it lists {sorted(listed)}, wrote {sorted(inside)}")

    def test_its_files_hold_no_path_of_this_machine(self) -> None:
        """Neither where they were written nor where the model was."""
        for name, bundle in self._bundles():
            with _fresh() as place:
                self.backend.lower(_program(bundle), place)
                told = [f for f, data in _contents(place).items() if str(place).encode() in data]
            require(not told, f"{name}: {', '.join(told)} tells where it was written")

    def test_it_leaves_the_program_as_it_is(self) -> None:
        """A backend translates: other backends get the same program."""
        for name, bundle in self._bundles():
            program = _program(bundle)
            before = snapshot(program)
            with _fresh() as place:
                self.backend.lower(program, place)
            edited = before.difference(snapshot(program))
            require(not edited, f"{name}: it edits the program: {edited}")

    def test_its_runner_refuses_what_is_no_file_of_its(self) -> None:
        """With FQ013, or FQ502 where the runtime is missing; never with a traceback."""
        for name, bundle in self._bundles():
            file = bundle.file("int8") or bundle.file("float")
            if file is None:
                continue
            with _fresh() as place:
                (place / file.name).write_bytes(b"\x00 no file of this format")
                try:
                    self.backend.runner(place / file.name)
                except FuseqError as error:
                    code = error.code
                else:
                    code = "no error"
            require(code in ("FQ013", "FQ502", "FQ503"), f"{name}: {code} for a damaged file")

    def test_it_says_which_tools_it_needs(self) -> None:
        """For `fuseq doctor`, which must not fail where a tool is missing."""
        tools = self.backend.doctor()
        require(all(isinstance(tool, Tool) for tool in tools), f"doctor() gives {tools}")

    def _bundles(self) -> Iterator[tuple[str, Bundle]]:
        return ((name, each.bundle) for name, each in self.lowered.items() if each.bundle)


class _TwoForeign(nn.Module):
    """Two calls of an op that few targets have."""

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(F.elu(x) + 1.0)


def _lowered(backend: Backend, model: nn.Module, inputs: Inputs, out: Path) -> Lowered:
    generator = torch.Generator().manual_seed(0)
    calibration = [inputs] + [
        tuple(torch.rand(x.shape, generator=generator) for x in inputs) for _ in range(3)
    ]
    try:
        bundle = fuseq.lower(model, inputs, backend=backend, out=out, calibration=calibration)
    except FuseqError as error:
        return Lowered(None, error)
    return Lowered(bundle, None)


def _program(bundle: Bundle) -> Program:
    assert bundle.program is not None
    return bundle.program


@contextlib.contextmanager
def _fresh() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="backend-contract-") as place:
        yield Path(place)


@contextlib.contextmanager
def _working_in(place: Path) -> Iterator[None]:
    """With a working directory and a place for temporary files that can be looked through."""
    before = tempfile.tempdir
    tempfile.tempdir = str(place)
    try:
        with contextlib.chdir(place):
            yield
    finally:
        tempfile.tempdir = before


def _contents(place: Path) -> dict[str, bytes]:
    files = (file for file in sorted(place.rglob("*")) if file.is_file())
    return {file.relative_to(place).as_posix(): file.read_bytes() for file in files}
