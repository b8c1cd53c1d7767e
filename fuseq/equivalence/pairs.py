"""`check`: compare any two of module, program, file and bundle on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fuseq.bundle import Bundle, read_bundle
from fuseq.equivalence.compare import (
    FLOAT32_FORMS,
    exact,
    fidelity,
    parity,
    relative_limits,
)
from fuseq.equivalence.integers import integer_parity
from fuseq.equivalence.result import Check, CheckResult, Divergence
from fuseq.equivalence.sides import Side, side_of, tensors
from fuseq.errors import FuseqError, first_line
from fuseq.rounding import float32_bound


def check(
    reference: object,
    candidate: object | None = None,
    inputs: Iterable[Sequence[np.ndarray]] | None = None,
    *,
    min_sqnr_db: float | None = None,
    max_rel: float | None = None,
) -> CheckResult:
    """Compare two things that should compute the same.

    Float against float is an *exact* check, integers against integers a *parity* check over every
    value both sides show, and float against integers a *fidelity* check. A bundle alone is
    compared with its own golden outputs.

    Args:
        reference: module, program, prepared model, bundle, or path of a file or bundle.
        candidate: another; None to check a bundle against its golden outputs.
        inputs: batches of float32 arrays; the sides' recorded inputs, or seeded ones in [0, 1].
        min_sqnr_db: gate of a fidelity check; without it that check only reports.
        max_rel: gate of an exact check. By default what float32 rounding explains where both
            sides are programs (`fuseq.rounding`), else `FLOAT32_FORMS`.

    Returns:
        One check per batch. Nothing compared is a failure.

    Raises:
        FuseqError: FQ009 if the sides have no inputs in common, FQ013 for unreadable things.
    """
    if candidate is None:
        return _check_golden(reference)
    a, b = side_of(reference), side_of(candidate)
    checks: list[Check] = []
    first: Divergence | None = None
    for number, batch in enumerate(inputs if inputs is not None else [_inputs(a, b)]):
        for side in (a, b):
            _require_fit(side, tuple(batch))
        compared, diverging = _compare(a, b, tuple(batch), number, min_sqnr_db, max_rel)
        checks.append(compared)
        first = first or diverging
    return CheckResult(tuple(checks), first)


def _compare(
    a: Side,
    b: Side,
    batch: tuple[np.ndarray, ...],
    number: int,
    min_sqnr_db: float | None,
    max_rel: float | None,
) -> tuple[Check, Divergence | None]:
    """The check of one batch, and the first value that differs where both show integers."""
    pair = f"{a.name} <-> {b.name}"
    note = "; ".join(dict.fromkeys(n for n in (a.note, b.note) if n))
    if a.integers and b.integers:
        ours, theirs = _ran(a, a.integers, batch), _ran(b, b.integers, batch)
        common = [name for name in ours if name in theirs]
        fitting = common and all(ours[name].shape == theirs[name].shape for name in common)
        programs = [(p, shown) for p, shown in ((a.program, theirs), (b.program, ours)) if p]
        if fitting and len(programs) == 1:
            program, shown = programs[0]
            return integer_parity(
                f"parity-{number}", pair, program, shown, tensors(batch), note=note
            )
        if common:
            left, right = [ours[n] for n in common], [theirs[n] for n in common]
            check = parity(f"parity-{number}", pair, left, right, note=note)
            return check, None if check.passed else _first_divergence(a, b, ours, theirs)
    expected, actual = _ran(a, a.run, batch), _ran(b, b.run, batch)
    if len(expected) != len(actual):
        raise FuseqError(
            "FQ009",
            f"{a.name} has {len(expected)} outputs, {b.name} has {len(actual)}",
            fix="compare two forms of one model",
        )
    if bool(a.integers) != bool(b.integers):
        check = fidelity(
            f"fidelity-{number}", pair, expected, actual, min_sqnr_db=min_sqnr_db, note=note
        )
        return check, None
    allowed = _float32_limits(a, b, batch, expected) if max_rel is None else max_rel
    return exact(f"exact-{number}", pair, expected, actual, max_rel=allowed, note=note), None


def _float32_limits(
    a: Side, b: Side, batch: tuple[np.ndarray, ...], expected: Sequence[np.ndarray]
) -> float | list[float]:
    if a.program is None or b.program is None or a.integers or b.integers:
        return FLOAT32_FORMS
    return relative_limits(float32_bound(tensors(batch), a.program, b.program), expected)


def _require_fit(side: Side, batch: tuple[np.ndarray, ...]) -> None:
    """Refuse inputs a side does not take (FQ005), or that hold nothing to compare (FQ009)."""
    shown = ", ".join("x".join(map(str, x.shape)) or "a number" for x in batch) or "nothing"
    if any(not x.size for x in batch):
        raise FuseqError("FQ009", f"the inputs hold no values: {shown}", fix="give a batch of one")
    if not all(np.isfinite(x).all() for x in batch):
        raise FuseqError("FQ005", "the inputs hold values that are not finite", fix="look for NaN")
    fits = len(batch) == len(side.shapes) and all(
        len(shape) == x.ndim and all(n in (None, m) for n, m in zip(shape, x.shape, strict=True))
        for shape, x in zip(side.shapes, batch, strict=False)
    )
    if side.shapes and not fits:
        wanted = ["x".join("?" if n is None else str(n) for n in shape) for shape in side.shapes]
        raise FuseqError(
            "FQ005",
            f"{side.name} does not take inputs of {shown}",
            why=f"it takes {', '.join(wanted)}",
            fix="one array for each input, in order; --inputs FILE.npz",
        )


def _ran(side: Side, run: Callable[..., Any], batch: tuple[np.ndarray, ...]) -> Any:
    """What a side gives; FQ005 if it cannot run on these inputs."""
    try:
        return run(*batch)
    except FuseqError:
        raise
    except Exception as error:
        shown = ", ".join("x".join(map(str, x.shape)) for x in batch)
        raise FuseqError(
            "FQ005",
            f"{side.name} cannot run on inputs of {shown}",
            why=first_line(error),
            fix="inputs of sizes that both sides take",
        ) from error


def _first_divergence(
    a: Side, b: Side, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> Divergence | None:
    for name in ours:
        if name in theirs and not np.array_equal(ours[name], theirs[name]):
            return Divergence(name, a.sources.get(name) or b.sources.get(name, ""))
    return None


def _inputs(a: Side, b: Side) -> tuple[np.ndarray, ...]:
    """Recorded inputs of either side, else seeded ones that fit both."""
    if a.golden or b.golden:
        return a.golden or b.golden
    shapes = a.shapes or b.shapes
    if not shapes:
        raise FuseqError("FQ009", "neither side says what its inputs are", fix="--inputs FILE.npz")
    random = np.random.default_rng(0)
    sizes = (
        [(1, 3, 64, 96)[d] if n is None else n for d, n in enumerate(shape)] for shape in shapes
    )
    return tuple(random.random(size, dtype=np.float32) for size in sizes)


def _check_golden(thing: object) -> CheckResult:
    """A bundle's file on this machine's runtime, against the outputs recorded when it was made."""
    if not isinstance(thing, str | Path | Bundle):
        raise FuseqError(
            "FQ009",
            "a model alone has nothing to be compared with",
            fix="give two: fuseq check model.py build/model; a bundle alone has golden outputs",
        )
    bundle = thing if isinstance(thing, Bundle) else read_bundle(Path(thing))
    side = side_of(bundle)
    golden = bundle.file("golden")
    assert golden is not None
    stored = np.load(golden)
    outputs = bundle.manifest["outputs"]
    expected = [stored[f"output.{entry['name']}"] for entry in outputs]
    actual = side.run(*side.golden)
    pair = f"golden outputs <-> {side.name}"
    if side.integers is None or any("grid" not in entry for entry in outputs):
        return CheckResult(
            (exact("golden", pair, expected, actual, max_rel=FLOAT32_FORMS, note=side.note),)
        )
    grids = [entry["grid"] for entry in outputs]
    codes = [
        [_codes(values, grid) for values, grid in zip(arrays, grids, strict=True)]
        for arrays in (expected, actual)
    ]
    float_file = bundle.file("float")
    if float_file and any(entry.get("rounded") for entry in outputs):
        reference = side_of(float_file).run(*side.golden)
        return CheckResult((_near_golden(reference, expected, actual, pair, side.note),))
    return CheckResult((parity("golden", pair, *codes, note=side.note),))


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
