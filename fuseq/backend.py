"""What a backend plugin is: a profile (data), a translation, and a way to run what it wrote.

A backend translates; it never optimizes and never chooses a scale. It is a frozen dataclass whose
fields are its options, spelled `onnx{opset=21}` like those of a pass, and it is registered under
the entry point group `fuseq.backends`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.quant.grid import Grid
from fuseq.quant.profile import Profile

if TYPE_CHECKING:
    from fuseq.equivalence.result import Check, Divergence


@dataclass(frozen=True)
class Refusal:
    """One reason why a node cannot be lowered.

    Attributes:
        node: name of the node.
        source: `file:line`, or the empty string.
        reason: why, in a sentence.
        fix: what would make it possible.
    """

    node: str
    source: str
    reason: str
    fix: str


@dataclass(frozen=True)
class Artifact:
    """One file a backend wrote.

    Attributes:
        path: relative to the bundle.
        kind: "float", "int8", or a word of the backend's own.
    """

    path: str
    kind: str


@dataclass(frozen=True)
class Tool:
    """One line of `fuseq doctor`.

    Attributes:
        name: of the tool.
        found: version, or the empty string if it is missing.
        ok: whether it will do.
        note: what it is for, what was detected, or how to get it.
    """

    name: str
    found: str
    ok: bool
    note: str


class Runner(ABC):
    """Runs one file on a runtime; registered under `fuseq.runners` by the ending it reads.

    A registered class is called with the path of a file; one whose runtime uses several threads
    takes their number as the keyword `threads`.

    Attributes:
        name: file name ending, without the dot.
        emulates: the device that the runtime imitates here, or the empty string: what an emulator
            takes is no latency.
        runtime: runtime and version, as reports print it.
        note: what a reader must know about this host (no VNNI, say), or the empty string.
        shapes: shape of each input; None where a size is free.
        dtypes: dtype of each input, as numpy spells it.
        quantized: whether the file has values on grids.
        output_names: name of each output; empty where the file has none.
        says_layout: whether the file itself says how its images lie; they are then taken and given
            as a program has them, channels first, and otherwise as they lie in the file.
    """

    name: ClassVar[str]
    emulates: ClassVar[str] = ""
    runtime: str
    note: str
    shapes: tuple[tuple[int | None, ...], ...]
    dtypes: tuple[str, ...]
    quantized: bool
    output_names: tuple[str, ...] = ()
    says_layout: bool = False

    @abstractmethod
    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Outputs for inputs, both in the file's own dtypes."""

    def ready(self, *inputs: np.ndarray) -> Callable[[], object]:
        """A call that runs the file once on inputs that lie where the runtime reads them.

        It is what `fuseq bench` times; a runner that moves or copies inputs first overrides it.
        """
        return lambda: self(*inputs)

    @abstractmethod
    def integers(self, *inputs: np.ndarray) -> Mapping[str, np.ndarray]:
        """Integers of every quantized value the runtime can show, by value name."""

    def reals(self, *inputs: np.ndarray) -> Mapping[str, np.ndarray]:
        """Reals of every value that the runtime can show and computes in float, by value name."""
        return {}

    def grids(self) -> tuple[tuple[Grid | None, ...], tuple[Grid | None, ...]]:
        """Grids of inputs and of outputs where the file itself states them; else empty."""
        return (), ()

    def float_ops(self) -> Mapping[str, int] | None:
        """Op types the runtime computes in float, with their number; None if it cannot tell."""
        return None

    def parameters(self) -> Mapping[str, np.ndarray]:
        """Quantization parameters that stand in the file, by the names of the table.

        Returns:
            `<name>.scale`, `<name>.zero_point` for each value, weight and bias, and `<name>` for
            frozen integers; empty where a format does not show them.
        """
        return {}


class Backend(ABC):
    """Base of every backend.

    Attributes:
        name: as it is spelled in `--backend`.
        profile: what the target does with integers.
        pipeline: passes to run before `lower`, as `--passes` spells them.
        device: what its files are for, in words, where that is not the kind of machine that runs
            `fuseq`; else the empty string.
        codes: what the codes mean that its refusals begin with, if they have any; `fuseq explain`
            prints it.
        known_chips: chips that a backend compiles for, with what is known of each; a backend that
            has some takes their names as its option `chips`.
    """

    name: ClassVar[str]
    profile: ClassVar[Profile]
    pipeline: ClassVar[str]
    device: ClassVar[str] = ""
    codes: ClassVar[Mapping[str, str]] = {}
    known_chips: ClassVar[Mapping[str, Mapping[str, str | int]]] = {}

    @abstractmethod
    def refusals(self, program: Program) -> list[Refusal]:
        """Every reason why a program cannot be lowered, all at once; empty if it can."""

    @abstractmethod
    def lower(self, program: Program, out: Path) -> list[Artifact]:
        """Translate a program into files in an existing, empty directory."""

    @abstractmethod
    def runner(self, file: Path) -> Runner:
        """A runner for a file this backend wrote.

        Raises:
            FuseqError: FQ502 if the runtime is missing, FQ013 if it cannot read the file.
        """

    def runners(self, file: Path) -> Mapping[str, Runner]:
        """Every runtime that an int8 file must agree with, by the arithmetic of its kernels.

        Raises:
            FuseqError: as `runner`.
        """
        return {self.profile.arithmetic: self.runner(file)}

    def checks(self, program: Program, folder: Path) -> list[tuple[Check, Divergence | None]]:
        """Checks of the backend's own on what it lowered, past those that every backend gets.

        Args:
            program: quantized.
            folder: what `lower` wrote.

        Returns:
            Each check, and the first value that breaks its gate where that is known.

        Raises:
            FuseqError: as the tools of the backend do.
        """
        return []

    def interface_grid(self, grid: Grid) -> Grid | None:
        """The grid on which a file takes or gives a value that is on `grid` inside.

        Returns:
            None where it takes and gives floats; the same reals in another dtype, or `grid`.
        """
        return None

    @property
    def channels_last(self) -> bool:
        """Whether images go into the files and come out with their channels last."""
        return False

    @property
    def fixed_size(self) -> bool:
        """Whether the files take inputs of the captured size only: sizes are then numbers."""
        return False

    def doctor(self) -> list[Tool]:
        """Tools the backend needs and what was found of them."""
        return []

    def require_choice(self, option: str, known: Sequence[str]) -> None:
        """Raise FQ012 for an option whose value is none of those known."""
        value = getattr(self, option)
        if value not in known:
            fix = f"{option}={' or '.join(known)}"
            raise FuseqError("FQ012", f"unknown {option} '{value}'", fix=fix)

    def require_lowerable(self, program: Program) -> None:
        """Raise FQ501 with every refusal at once."""
        found = self.refusals(program)
        if found:
            lines = [f"`{r.node}` ({r.source or 'no source'}): {r.reason}" for r in found]
            raise FuseqError(
                "FQ501",
                f"backend '{self.name}' cannot lower {len(found)} of the program's nodes",
                where=found[0].source or found[0].node,
                why="\n       ".join(lines),
                fix=found[0].fix,
            )
