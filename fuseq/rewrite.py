"""`Pass`: one rewrite with a numeric promise; `Pipeline`: runs passes and holds them to it.

A pass is a frozen dataclass; its fields are its options. It edits the clone it is given and says
how many rewrites it made. The pipeline does the rest, and trusts nothing: requirements, lint,
interface, what the pass ensures (looked up on the *result*), and the promise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch

from fuseq import shapes, verify
from fuseq.errors import FuseqError, first_line
from fuseq.memory import free_clones
from fuseq.pass_spec import spelled
from fuseq.program import PassRecord, Program
from fuseq.source_lines import raising_line

Predicate: TypeAlias = Callable[[Program], str | None]
"""Says what is wrong with a program, or None: what a pass requires or ensures."""


@dataclass(frozen=True)
class SameFunction:
    """The pass changes nothing but rounding.

    Attributes:
        rtol: allowed `max |error| / max |output|` on the float64 twin. Rounding gives about 1e-15,
            the mildest wrong fold known 1e-5.
    """

    rtol: float = 1e-9


@dataclass(frozen=True)
class Approximates:
    """The pass changes values a little, by design.

    Attributes:
        max_rel: allowed `max |error| / max |output|` on the float64 twin.
    """

    max_rel: float


@dataclass(frozen=True)
class NewFunction:
    """The pass changes the function on purpose; nothing numeric is promised.

    Attributes:
        why: shown to users.
    """

    why: str


Promise: TypeAlias = SameFunction | Approximates | NewFunction


class Pass(ABC):
    """Base of every pass.

    Attributes:
        name: as it is spelled in `--passes`.
        promise: what the rewrite does to values; the pipeline proves it.
        requires: what must hold before.
        ensures: what holds after.
    """

    name: ClassVar[str]
    promise: ClassVar[Promise]
    requires: ClassVar[tuple[Predicate, ...]] = ()
    ensures: ClassVar[tuple[Predicate, ...]] = ()

    @abstractmethod
    def run(self, program: Program) -> int:
        """Edit a program in place; returns the number of rewrites made."""

    def spelled(self) -> str:
        """Name and the options that differ from their defaults: `fuse-affine{cost=macs}`."""
        return spelled(self)


@dataclass(frozen=True)
class Pipeline:
    """Passes in order.

    Attributes:
        passes: what to run.
        prove: check each promise on perturbed float64 twins (costs one more rewrite and a few
            float64 runs a pass).
        progress: called with each pass before it runs.
    """

    passes: Sequence[Pass]
    prove: bool = True
    progress: Callable[[Pass], None] | None = None

    def run(self, program: Program) -> Program:
        """Run all passes on clones of a program.

        Raises:
            FuseqError: FQ201, FQ203 to FQ206 for a pass that breaks its contract, FQ301 for one
                that breaks its promise. The given program is never changed.
        """
        for step in self.passes:
            if self.progress:
                self.progress(step)
            program = apply(step, program, prove=self.prove)
        return program


def split_by_promise(steps: Sequence[Pass], program: Program) -> tuple[Program, list[Pass]]:
    """What a pipeline is to be compared with, and the part of it that promises no difference.

    Args:
        steps: any passes.
        program: what they are run on; stays as it is.

    Returns:
        The program after the steps that change values on purpose (itself if there are none), and
        the other steps.
    """
    new = [step for step in steps if not isinstance(step.promise, SameFunction)]
    same = [step for step in steps if isinstance(step.promise, SameFunction)]
    return (Pipeline(new, prove=False).run(program) if new else program), same


def apply(step: Pass, program: Program, *, prove: bool = True) -> Program:
    """Run one pass on a clone and hold it to its contract.

    Args:
        step: the pass.
        program: stays as it is.
        prove: check the numeric promise.

    Returns:
        The rewritten clone, with one more record in its history.

    Raises:
        FuseqError: as `Pipeline.run`.
    """
    _require(step, step.requires, program, "FQ201", "requires")
    result, rewrites = _rewritten(step, program)
    _require(step, step.ensures, result, "FQ205", "ensures")
    error = _prove(step, program, rewrites) if prove else None
    record = PassRecord(step.spelled(), rewrites, tuple(result.notes), error)
    result.history, result.notes = (*program.history, record), []
    free_clones(program)
    return result


def _rewritten(step: Pass, program: Program) -> tuple[Program, int]:
    result = program.clone()
    try:
        rewrites = step.run(result)
    except FuseqError:
        raise
    except Exception as error:
        location = raising_line(error)
        raise FuseqError(
            "FQ206",
            f"pass '{step.name}' raised {type(error).__name__}: {error}",
            where=f"{location}: {location.code}" if location else None,
            fix="a pass refuses with a FuseqError, or leaves the program alone",
        ) from error
    try:
        result.clean()
        shapes.propagate(result)
        faults = verify.problems(result)
    except FuseqError as error:
        faults = [error.what]
    except Exception as error:
        faults = [first_line(error)]
    if faults:
        raise FuseqError(
            "FQ203",
            f"pass '{step.name}' left a malformed graph",
            why="; ".join(faults[:5]),
            fix="use Program.insert_module and replace_all_uses_with, and keep modules called once",
        )
    _same_interface(step, program, result)
    return result, rewrites


def _require(
    step: Pass, predicates: Sequence[Predicate], program: Program, code: str, verb: str
) -> None:
    for predicate in predicates:
        reason = predicate(program)
        if reason:
            ran = ", ".join(record.name for record in program.history) or "none"
            raise FuseqError(
                code,
                f"pass '{step.name}' {verb} {predicate.__name__.replace('_', ' ')}: {reason}",
                why=f"passes run before it: {ran}",
                fix="change the order in --passes",
            )


def _same_interface(step: Pass, before: Program, after: Program) -> None:
    def interface(program: Program) -> list[tuple[str, tuple[int, ...]]]:
        inputs = [(node.name, program.shape(node)) for node in program.inputs()]
        return inputs + [("output", program.shape(node)) for node in program.outputs()]

    if interface(before) != interface(after):
        raise FuseqError(
            "FQ204",
            f"pass '{step.name}' changed the program's inputs or outputs",
            why=f"{interface(before)} became {interface(after)}",
            fix="a pass keeps names, order and shapes of inputs and outputs",
        )


def _prove(step: Pass, program: Program, rewrites: int) -> float | None:
    """Largest relative difference the pass makes on float64 twins; FQ301 if too large.

    The twin is perturbed, so that nothing hides behind default values. A pass that looks at values
    may find something else to rewrite there: then the twin with the real values counts too.
    """
    match step.promise:
        case NewFunction():
            return None
        case SameFunction(rtol=limit) | Approximates(max_rel=limit):
            pass
    probes = verify.probe_inputs(program)
    twin = program.twin(torch.float64)
    verify.perturb(twin)
    error, found = _proved(step, twin, probes, limit, "with perturbed weights and statistics")
    if found != rewrites:
        same = program.twin(torch.float64)
        error = max(error, _proved(step, same, probes, limit, "with the program's own weights")[0])
    return error


def _proved(
    step: Pass, twin: Program, probes: list[tuple[torch.Tensor, ...]], limit: float, how: str
) -> tuple[float, int]:
    """The difference a pass makes on a twin, and how many rewrites it makes there."""
    rewritten, rewrites = _rewritten(step, twin)
    error = verify.distance(twin, rewritten, probes)
    if error > limit:
        raise FuseqError(
            "FQ301",
            f"pass '{step.name}' broke its promise {step.promise}",
            where=_first_difference(twin, rewritten, probes[0]),
            why=f"outputs differ by {error:.2e} of their range, allowed {limit:g}, "
            f"on a float64 twin {how}",
            fix="mend the rewrite; if the change is meant, promise Approximates or NewFunction",
        )
    return error, rewrites


def _first_difference(
    before: Program, after: Program, inputs: tuple[torch.Tensor, ...]
) -> str | None:
    """First value that both programs have, by name, and that is wrong from there on.

    A fold changes the value of the convolution it folds into, rightly; what comes after agrees
    again. So a difference counts only if no later value that depends on it agrees.
    """
    expected, actual = _values(before, inputs), _values(after, inputs)
    names = {node: node.name for node in before.graph.nodes if node.op != "output"}
    names |= {a: b.name for a, b in zip(before.outputs(), after.outputs(), strict=True)}
    agrees = {
        node: verify.relative_max(actual[name], expected[node.name]) <= 1e-9
        for node, name in names.items()
        if node.name in expected and name in actual
    }
    reaches_agreement: set[torch.fx.Node] = set()
    for node in reversed(before.graph.nodes):
        if any(agrees.get(user) or user in reaches_agreement for user in node.users):
            reaches_agreement.add(node)
    wrong = (n for n, same in agrees.items() if not same and n not in reaches_agreement)
    first = next(wrong, None)
    return before.where(first) if first else None


def _values(program: Program, inputs: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    values: dict[str, torch.Tensor] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> object:
            result = super().run_node(node)
            if isinstance(result, torch.Tensor):
                values[node.name] = result
            return result

    with torch.no_grad():
        Recorder(program.module).run(*inputs)
    return values
