"""From a PyTorch module to a canonical `Program`.

Two front ends record what the model calls (`fuseq.recording`). One is believed only when its
program computes what the model computes at the example inputs; a size counts as free only when it
does so at other sizes too and, because a forward may branch on it, at sizes of the other parity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fuseq import verify
from fuseq.arguments import ExampleInputs, as_tuple
from fuseq.build import NARROW
from fuseq.errors import FuseqError, first_line
from fuseq.fixed_size import FIXED, fold_sizes
from fuseq.model_copy import copied, plain, require_copyable, traceable, untouched
from fuseq.model_runs import (
    Run,
    Shapes,
    changed_sizes,
    distance,
    first_run,
    of_other_parity,
    other_shapes,
    relative_l2,
    run_at,
)
from fuseq.program import Origin, Program
from fuseq.recording import Recording, record
from fuseq.training_form import Types, fused_in_eval, in_training, training_types

Sizes: TypeAlias = tuple[tuple[int, int], ...]
"""(input, dimension) pairs."""


def capture(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    front_end: str = "auto",
    dynamic: bool = True,
) -> Program:
    """Capture a model as a program.

    Args:
        model: any module; not edited, its training mode does not matter. One in half precision is
            captured in float32.
        example_inputs: one tensor, one per argument of `forward`, or some by name.
        front_end: "export", "fx", or "auto": the one whose program is right at most sizes.
        dynamic: leave open the sizes that the model lets change; else all are the captured ones.

    Returns:
        A program equal to `model.eval()`, in the canonical vocabulary, with source locations.

    Raises:
        FuseqError: FQ005 for inputs that are no tensors, FQ007 for an unknown front end, FQ101
            when no front end can record the model, FQ102 when the model raises on the inputs,
            FQ103 for weights that are not finite, FQ104 when a recording computes something else.
    """
    if front_end not in ("auto", "fx", "export"):
        raise FuseqError(
            "FQ007", f"unknown front end '{front_end}'", fix="use 'auto', 'fx' or 'export'"
        )
    inputs = as_tuple(model, example_inputs)
    _require_values(inputs)
    require_copyable(model)
    front_ends = ("fx", "export") if front_end == "auto" else (front_end,)
    with torch.random.fork_rng(devices=()), untouched(model):
        given = tuple(x.detach().clone() for x in inputs)
        return _captured(model, given, front_ends, other_shapes(given) if dynamic else [])


def _require_values(inputs: tuple[Tensor, ...]) -> None:
    for index, x in enumerate(inputs):
        if x.layout != torch.strided or x.is_meta:
            fault = f"is on {x.device} and {x.layout}, not dense"
        elif not x.numel():
            fault = f"of shape {'x'.join(map(str, x.shape))} is empty"
        elif not torch.isfinite(x).all():
            fault = "has values that are not finite"
        else:
            continue
        raise FuseqError(
            "FQ005", f"example input {index} {fault}", fix="a tensor such as the model sees"
        )


def _captured(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    front_ends: Iterable[str],
    others: Sequence[Shapes],
) -> Program:
    wide, inputs, notes = _in_float32(model, inputs)
    outputs, result = first_run(wide, inputs)
    plain_outputs = pytree.tree_structure(result) != pytree.tree_structure(plain(result))
    if plain_outputs:
        kind = type(result).__name__
        notes += [f"forward returns {kind}: the program gives nested tuples, lists and dicts"]
    if in_training(model):
        notes += ["the model was in training mode: captured as in eval"]
    trials = _Trials(wide, (inputs, outputs), others)
    types = training_types(wide, trials.first)

    failures: list[tuple[str, FuseqError]] = []
    best: _Capture | None = None
    for front_end in front_ends:
        for chosen in dict.fromkeys((types, frozenset[type[nn.Module]]())):
            try:
                copy = traceable(wide, chosen, plain_outputs)
                recording = record(front_end, copy, inputs, trials.far_shapes())
                _require_same(front_end, recording, trials.first)
            except FuseqError as error:
                failures.append((front_end, error))
                continue
            found = _Capture(front_end, recording, chosen, trials.freedom(recording))
            if best is None or len(found.free) > len(best.free):
                best = found
            break
        if best and best.free == trials.free():
            break
    if best is None:
        # Export records more than fx does, so what stops it is the obstacle.
        last = failures[-1][0]
        raise next(error for name, error in failures if name == last)
    fused = fused_in_eval(wide, best.types, trials.first)
    if fused:
        notes += [f"{', '.join(fused)} fuses itself in eval: captured with its branches"]
    notes += [*best.recording.notes, *trials.limits(best), *([] if others else [FIXED])]
    program = best.recording.program
    program.origin = Origin(model, best.front_end, best.free, tuple(notes))
    fold_sizes(program)
    return program


def _in_float32(
    model: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[nn.Module, tuple[Tensor, ...], list[str]]:
    """The model and its inputs, or what they are in float32 if something is narrower."""
    held = (*model.parameters(), *model.buffers(), *inputs)
    narrow = next((t.dtype for t in held if t.dtype in NARROW), None)
    if narrow is None:
        return model, inputs, []
    note = f"the model is in {str(narrow).removeprefix('torch.')}: captured in float32"
    floats = tuple(x.float() if x.is_floating_point() else x for x in inputs)
    return copied(model).float(), floats, [note]


# --- which sizes are free -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Capture:
    """A program that is right at the example inputs.

    Attributes:
        front_end: what recorded it.
        recording: the program, and what the front end says of it.
        types: recorded in training mode.
        free: (input, dimension) pairs whose size may change.
    """

    front_end: str
    recording: Recording
    types: Types
    free: Sizes


class _Trials:
    """Runs of a model at other sizes, each made when it is first asked for.

    Attributes:
        first: the example inputs with their outputs.
    """

    def __init__(self, model: nn.Module, first: Run, others: Sequence[Shapes]) -> None:
        self.first, self._model, self._shapes = first, model, others
        self._runs: dict[int, Run | None] = {}

    def free(self) -> Sizes:
        """Sizes that the model itself lets change."""
        run = next(self._others(), None)
        return changed_sizes(self.first, run) if run else ()

    def freedom(self, recording: Recording) -> Sizes:
        """Sizes that may change in a recording."""
        for run in self._others():
            free = changed_sizes(self.first, run)
            if any(dim >= 2 for _, dim in free) and self._branches(recording):
                continue
            apart = _distance(recording, run)
            if apart is not None and apart <= recording.tolerance:
                return free
        return ()

    def far_shapes(self) -> Shapes:
        """Shapes far from the example inputs' along the line to the second run's.

        Far, so that no two different sizes inside the model meet by chance.
        """
        second = next(self._others(), self.first)
        return [
            tuple(m + 32 * abs(n - m) for m, n in zip(a.shape, b.shape, strict=True))
            for a, b in zip(self.first[0], second[0], strict=True)
        ]

    def limits(self, found: _Capture) -> list[str]:
        """What a recording leaves out of the sizes that the model takes, in words."""
        lost = {dim for pair in self.free() if pair not in found.free for dim in pair[1:]}
        notes = []
        if lost:
            kind = "image size" if 0 not in lost else "input size" if len(lost) > 1 else "batch"
            notes = [f"the program is valid at the captured {kind} only"]
        for (index, dim), size in found.recording.smallest.items():
            below = [list(x.shape) for x in self.first[0]]
            below[index][dim] = size - 1
            run = run_at(self._model, self.first[0], [tuple(shape) for shape in below])
            if (index, dim) not in found.free or run is None:
                continue
            apart = _distance(found.recording, run)
            if apart is None or apart > found.recording.tolerance:
                name = found.recording.program.input_names[index]
                notes += [f"below {size} of dimension {dim} of `{name}` the model branches: "
                          "the program is valid from there on"]  # fmt: skip
        return notes

    def _others(self) -> Iterator[Run]:
        for index, shapes in enumerate(self._shapes):
            run = self._run(index, shapes)
            if run:
                yield run

    def _branches(self, recording: Recording) -> bool:
        """Whether the model branches on a size, so that the recording is wrong at others.

        A program that raises at images of another parity makes no mistake there.
        """
        odd = self._run(-1, of_other_parity(self.first[0]))
        apart = _distance(recording, odd) if odd else None
        return bool(recording.largest) or (apart is not None and apart > recording.tolerance)

    def _run(self, key: int, shapes: Shapes) -> Run | None:
        if key not in self._runs:
            self._runs[key] = run_at(self._model, self.first[0], shapes)
        return self._runs[key]


# --- whether a recording is believed ------------------------------------------------------------


def _distance(recording: Recording, run: Run) -> float | None:
    """How far a recording's outputs are from the model's; None if it cannot run."""
    try:
        return distance(verify.outputs(recording.program, run[0]), run[1])
    except Exception:
        return None


def _require_same(front_end: str, recording: Recording, run: Run) -> None:
    inputs, expected = run
    try:
        actual = verify.outputs(recording.program, inputs)
    except Exception as error:
        raise FuseqError(
            "FQ104",
            f"the captured program raised: {first_line(error)}",
            why=f"the {front_end} front end recorded another computation",
            fix="name the inputs in forward's arguments, and keep what it returns in one form",
        ) from error
    distances = [relative_l2(a, b) for a, b in zip(actual, expected, strict=True)]
    worst = max(distances)
    if worst > recording.tolerance:
        raise FuseqError(
            "FQ104",
            f"output {distances.index(worst)} of the captured program is {worst:.1e} away from "
            "the model's",
            why=f"the {front_end} front end recorded another computation "
            "(control flow on values, or state that forward keeps)",
            fix="move the branch out of forward",
        )
