"""A bundle in itself: its files as they were written, its recorded outputs, its own program.

No user's code runs: the program comes from the bundle's own file. The int8 file is held to it op
by op on every runtime that the backend knows, and the float file to what rounding explains.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fuseq import plugins, verify
from fuseq.backend import Backend
from fuseq.bundle import Bundle
from fuseq.equivalence.batches import batches_for, require_fit
from fuseq.equivalence.compare import FLOAT32_FORMS, exact, fidelity, parity, relative_limits
from fuseq.equivalence.input_sets import Batch
from fuseq.equivalence.integers import file_parity, table_parity
from fuseq.equivalence.layers import layer_table, past_its_bound
from fuseq.equivalence.result import Check, CheckResult, Layer
from fuseq.equivalence.sides import (
    REFERENCES,
    Side,
    float_form,
    ran,
    side_of,
    tensors,
)
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.rounding import float32_bound

_CONTEXT = "context-"
"""How the kind of a file that is compiled for one chip begins."""


def check_bundle(
    bundle: Bundle,
    inputs: Iterable[Sequence[np.ndarray]] | str | None = None,
    *,
    layers: bool = False,
    samples: int = 4,
    seed: int = 0,
) -> CheckResult:
    """Check every file of a bundle.

    Args:
        bundle: read from disk or just made.
        inputs: as `fuseq.check` takes them; by default the recorded ones. Recorded outputs are
            compared on their own inputs in any case.
        layers: tell of every value how its file's integers fare against the program in float.
        samples: number of generated batches, or of images read.
        seed: of generated sets.

    Raises:
        FuseqError: FQ013 if a file is missing, or the recorded outputs or the program are not as
            they were written, or a file cannot be read.
    """
    bundle.require_intact(REFERENCES)
    file = bundle.file("int8") or bundle.file("float")
    if file is None or bundle.file("golden") is None:
        raise FuseqError("FQ013", f"bundle '{bundle.path}' lists no file to run", fix="lower again")
    side = side_of(file)
    checks = [*_changed(bundle), replace(golden_check(bundle, side), candidate=side.name)]
    program = bundle.lowered_program()
    tables: dict[str, tuple[Layer, ...]] = {}
    if program is not None:
        batches = batches_for([side], inputs, samples, seed)
        for batch in batches:
            require_fit(side, batch)
        backend: Backend = plugins.load("backends", bundle.manifest["backend"])()
        checks += _integers(bundle, backend, program, batches)
        checks += _floats(bundle, program, batches)
        checks += _chips(bundle, backend, program)
        if layers:
            plain = side_of(float_form(program))
            tables[side.name] = tuple(layer_table(plain, side, batches, ran))
    first = next((found.divergence for found in checks if found.divergence), None)
    told = [c if c.passed or c.divergence else replace(c, divergence=first) for c in checks]
    return CheckResult(tuple(told), first, tables)


def _changed(bundle: Bundle) -> list[Check]:
    """A failed check if a file is not the one that was written."""
    changed = bundle.changed_files()
    if not changed:
        return []
    metrics = {"differing": len(changed), "total": len(bundle.manifest["files"])}
    note = f"changed since it was written: {', '.join(changed)}"
    return [Check("files", "manifest <-> files", "parity", metrics, {"differing": 0}, False, note)]


def _integers(
    bundle: Bundle, backend: Backend, program: Program, batches: Sequence[Batch]
) -> Iterator[Check]:
    """The int8 file's parameters against the table, and its integers on each runtime."""
    file = bundle.file("int8")
    if file is None or program.quantization is None:
        return
    name = f"{bundle.path.name}/{file.name}"
    runners = backend.runners(file)
    first = next(iter(runners.values()))
    if first.parameters():
        compared, wrong = table_parity(program, first)
        yield replace(compared, candidate=name, divergence=wrong)
    for arithmetic, runner in runners.items():
        for number, batch in enumerate(batches):
            run = lambda *x: file_parity(program, runner, tensors(x), arithmetic)  # noqa: B023, E731
            compared, wrong = ran(side_of(program), run, batch)
            id = compared.id + f"-{number}" * (len(batches) > 1)
            yield replace(compared, id=id, candidate=name, divergence=wrong)


def _floats(bundle: Bundle, program: Program, batches: Sequence[Batch]) -> Iterator[Check]:
    """The float file against the program in float64, held to what rounding explains."""
    file = bundle.file("float")
    if file is None:
        return
    side, plain = side_of(file), float_form(program)
    twin = plain.in_dtype(torch.float64)
    truth: list[np.ndarray] = []
    theirs: list[np.ndarray] = []
    allowed: list[float] = []
    for batch in batches:
        floats = tensors(batch)
        wide = tuple(x.double() if x.is_floating_point() else x for x in floats)
        exact_outputs = [y.numpy() for y in verify.outputs(twin, wide)]
        truth += exact_outputs
        allowed += relative_limits(float32_bound(floats, plain), exact_outputs)
        theirs += ran(side, side.run, batch)
    pair = f"program (float64) <-> {side.name}"
    made = exact("float-file", pair, truth, theirs, max_rel=allowed, note=side.note)
    wrong = None if made.passed else past_its_bound(side_of(plain), side, batches[0], ran)
    yield replace(made, candidate=side.name, divergence=wrong)


def _chips(bundle: Bundle, backend: Backend, program: Program) -> list[Check]:
    """The backend's own checks of what it compiled for chips, where this machine can run that."""
    kinds = [entry["kind"] for entry in bundle.manifest["files"]]
    chips = tuple(kind.removeprefix(_CONTEXT) for kind in kinds if kind.startswith(_CONTEXT))
    if not chips:
        return []
    made: Any = replace(backend, chips=chips)  # type: ignore[type-var]
    try:
        found = made.checks(program, bundle.path)
    except FuseqError as error:
        if error.code not in ("FQ502", "FQ503"):
            raise
        note = f"not run here: {error.what}"
        return [Check("chips", f"program <-> {', '.join(chips)}", "parity", {}, {}, True, note)]
    return [replace(each, candidate=bundle.path.name, divergence=wrong) for each, wrong in found]


def golden_check(bundle: Bundle, side: Side) -> Check:
    """A bundle's file on this machine's runtime, against the outputs recorded when it was made.

    Args:
        bundle: with its recorded outputs.
        side: of its int8 file, or of its float file where that is all it has.
    """
    golden = bundle.file("golden")
    assert golden is not None
    stored = np.load(golden)
    outputs = bundle.manifest["outputs"]
    expected = [stored[f"output.{entry['name']}"] for entry in outputs]
    actual = ran(side, side.run, side.golden)
    pair = f"golden outputs <-> {side.name}"
    program = bundle.lowered_program() if side.integers is None else None
    if program is not None:
        # Two runs in float32, of which each rounds in its own way.
        bounds = float32_bound(tensors(side.golden), program, program)
        allowed = relative_limits(bounds, expected)
        return exact("golden", pair, expected, actual, max_rel=allowed, note=side.note)
    if side.integers is None or any("grid" not in entry for entry in outputs):
        return exact("golden", pair, expected, actual, max_rel=FLOAT32_FORMS, note=side.note)
    float_file = bundle.file("float")
    if float_file and any(entry.get("rounded") for entry in outputs):
        reference = side_of(float_file).run(*side.golden)
        return _near_golden(reference, expected, actual, pair, side.note)
    codes = [
        [_codes(values, entry["grid"]) for values, entry in zip(arrays, outputs, strict=True)]
        for arrays in (expected, actual)
    ]
    return parity("golden", pair, *codes, note=side.note)


def _near_golden(
    reference: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    actual: Sequence[np.ndarray],
    pair: str,
    note: str,
) -> Check:
    """Outputs that depend on how a machine rounds floats, against the recorded ones.

    What another machine rounds otherwise must change less than quantization did: the gate is the
    signal-to-noise ratio of the recorded outputs to those of the bundle's float file, `reference`.
    """
    lost = fidelity("golden", pair, reference, expected).metrics["sqnr_db"]
    return fidelity("golden", pair, expected, actual, min_sqnr_db=float(lost), note=note)


def _codes(values: np.ndarray, grid: dict[str, float]) -> np.ndarray:
    """Integers of dequantized values; integers as they are."""
    if np.issubdtype(values.dtype, np.integer):
        return values
    return np.rint(values.astype(np.float64) / grid["scale"]).astype(np.int64) + int(
        grid["zero_point"]
    )
