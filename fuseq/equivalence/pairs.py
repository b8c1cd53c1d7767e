"""`check`: compare a reference with candidates on the same inputs, output by output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fuseq.bundle import Bundle, read_bundle
from fuseq.equivalence.batches import batches_for, require_fit
from fuseq.equivalence.bundles import check_bundle
from fuseq.equivalence.compare import FLOAT32_FORMS, exact, fidelity, parity, relative_limits
from fuseq.equivalence.input_sets import Batch
from fuseq.equivalence.integers import integer_parity
from fuseq.equivalence.layers import first_wrong, layer_table
from fuseq.equivalence.layouts import arranged
from fuseq.equivalence.limits import PARITY, Limits
from fuseq.equivalence.lowered import Evaluate, metrics_of
from fuseq.equivalence.result import Check, CheckResult, Layer
from fuseq.equivalence.sides import Side, ran, side_of, tensors
from fuseq.errors import FuseqError
from fuseq.quant.grid import Grid
from fuseq.rounding import float32_bound


def check(
    reference: object,
    candidate: object | None = None,
    inputs: Iterable[Sequence[np.ndarray]] | str | None = None,
    *,
    min_sqnr_db: float | None = None,
    max_rel: float | None = None,
    limits: Limits | None = None,
    layouts: Mapping[str, str] | None = None,
    layers: bool = False,
    bisect: bool = False,
    samples: int = 4,
    seed: int = 0,
    evaluate: Evaluate | None = None,
) -> CheckResult:
    """Compare things that should compute the same.

    Float against float is an *exact* check, integers against integers a *parity* check, and float
    against integers a *fidelity* check; a limit asks for the class it belongs to. A quantized
    program and a file are compared op by op. A bundle alone is compared with its own golden outputs
    and, op by op, with the program it holds.

    Args:
        reference: module, program, prepared model, bundle, or path of a file or bundle.
        candidate: another, or a list of others; None to check a bundle in itself.
        inputs: batches of float32 arrays, channels first; or the name of a set, a `.npz` file or a
            folder of images (`fuseq.equivalence.input_sets`). By default the sides' recorded
            inputs, or seeded ones in 0..1.
        min_sqnr_db: gate of a fidelity check; without it that check only reports.
        max_rel: gate of an exact check. By default what float32 rounding explains where both
            sides' programs are known (`fuseq.rounding`), else `FLOAT32_FORMS`.
        limits: all of them, instead of the two.
        layouts: "nhwc" or "nchw" by name of a file that does not say how its images lie; "" for
            every such file.
        layers: tell of every value that both sides show how it fares.
        bisect: name the node that loses most also where a fidelity check passes.
        samples: number of generated batches, or of images read.
        seed: of generated sets.
        evaluate: the user's metric, for `limits.metric_drop`; called with a function from array to
            array.

    Returns:
        One check for each candidate and output. Nothing compared is a failure.

    Raises:
        FuseqError: FQ009 if the sides have no inputs in common, FQ013 for unreadable things.
    """
    held = limits or Limits(max_rel=max_rel, sqnr_db=min_sqnr_db)
    if candidate is None:
        bundle = _bundle(reference)
        return check_bundle(bundle, inputs, layers=layers, samples=samples, seed=seed)
    several = list(candidate) if isinstance(candidate, list | tuple) else None
    others = _distinct([side_of(thing) for thing in (several or [candidate])])
    first_side = side_of(reference)
    batches = batches_for([first_side, *others], inputs, samples, seed)
    checks: list[Check] = []
    tables: dict[str, tuple[Layer, ...]] = {}
    for other in others:
        pair = _Pair(first_side, other, batches, layouts or {}, held)
        prefix = f"{other.name}:" if several else ""
        checks += [
            replace(found, id=prefix + found.id, candidate=other.name)
            for found in pair.checks(evaluate, bisect)
        ]
        if layers:
            tables[other.name] = tuple(layer_table(pair.a, pair.b, batches, ran))
    first = next((c.divergence for c in checks if c.divergence), None)
    return CheckResult(tuple(checks), first, tables)


def _distinct(sides: Sequence[Side]) -> list[Side]:
    """Sides of which no two have one name, as files of two directories may."""
    names = [side.name for side in sides]
    return [
        side if names.count(side.name) == 1 else replace(side, name=f"{side.name} ({number})")
        for number, side in enumerate(sides, start=1)
    ]


class _Pair:
    """Two sides, and what each gives for all batches."""

    def __init__(
        self, a: Side, b: Side, batches: list[Batch], layouts: Mapping[str, str], limits: Limits
    ) -> None:
        self.a, self.b = (arranged(side, batches[0], layouts) for side in (a, b))
        self.batches, self.limits = batches, limits
        for batch in batches:
            for side in (self.a, self.b):
                require_fit(side, batch)
        self.pair = f"{a.name} <-> {b.name}"
        self.note = "; ".join(dict.fromkeys(n for n in (self.a.note, self.b.note) if n))

    def checks(self, evaluate: Evaluate | None, bisect: bool) -> list[Check]:
        given = self.limits != Limits()
        programs = [side for side in (self.a, self.b) if side.program and side.integers]
        if self.a.integers and self.b.integers and len(programs) == 1 and not given:
            [side] = programs
            found = self._op_by_op(side, self.b if side is self.a else self.a)
            if found:
                return found
        expected, actual = (
            [ran(side, side.run, batch) for batch in self.batches] for side in (self.a, self.b)
        )
        count = len(expected[0])
        if count != len(actual[0]):
            raise FuseqError(
                "FQ009",
                f"{self.a.name} has {count} outputs, {self.b.name} has {len(actual[0])}",
                fix="compare two forms of one model",
            )
        names = self.a.outputs or self.b.outputs or tuple(f"output-{k}" for k in range(count))
        self.limits.require_known(names)
        checks = []
        bounds: list[list[float]] | None = None
        for position, name in enumerate(names):
            pair = [[batch[position] for batch in side] for side in (expected, actual)]
            for kind in self._kinds(name):
                if kind == "exact" and bounds is None:
                    bounds = self._bounds(expected)
                checks.append(self._output(kind, name, position, len(names), pair, bounds or []))
        checks += self._metrics(evaluate)
        wanted = [c for c in checks if not c.passed or (bisect and c.kind == "fidelity")]
        if not wanted:
            return checks
        each = (first_wrong(self.a, self.b, batch, ran) for batch in self.batches)
        wrong = next((found for found in each if found), None)
        return [replace(c, divergence=wrong) if c in wanted else c for c in checks]

    def _op_by_op(self, side: Side, other: Side) -> list[Check]:
        """Integers of a file against those of a program; none if they have no value in common."""
        assert side.program is not None
        assert other.integers is not None
        found = []
        for number, batch in enumerate(self.batches):
            shown = ran(other, other.integers, batch)
            if not any(node.name in shown for node in side.program.graph.nodes):
                return []
            compared, first = integer_parity(
                f"parity-{number}", self.pair, side.program, shown, tensors(batch), note=self.note
            )
            found.append(replace(compared, divergence=first))
        return found

    def _kinds(self, output: str) -> list[str]:
        """Classes that the limits of an output ask for, or the one that the sides have."""
        wanted = self.limits.of(output)
        asked = [
            kind
            for kind, names in (
                ("exact", ("max_rel",)),
                ("fidelity", ("sqnr_db", "psnr_db")),
                ("parity", PARITY),
            )
            if any(name in wanted for name in names)
        ]
        both, either = self.a.integers and self.b.integers, self.a.integers or self.b.integers
        return asked or ["parity" if both else "fidelity" if either else "exact"]

    def _output(
        self,
        kind: str,
        output: str,
        position: int,
        count: int,
        arrays: Sequence[Sequence[np.ndarray]],
        bounds: list[list[float]],
    ) -> Check:
        id = kind if count == 1 else f"{kind}-{output}"
        limits = self.limits.of(output)
        if kind == "exact":
            allowed = [limits.get("max_rel", each[position]) for each in bounds]
            made = exact(id, self.pair, *arrays, max_rel=allowed, note=self.note)
        elif kind == "fidelity":
            made = fidelity(
                id,
                self.pair,
                *arrays,
                min_sqnr_db=limits.get("sqnr_db"),
                min_psnr_db=limits.get("psnr_db"),
                data_range=self.limits.data_range,
                note=self.note,
            )
        else:
            grid = self._grid(output, position)
            steps = [[steps_of(values, grid) for values in side] for side in arrays]
            gate = {name: limits[name] for name in PARITY if name in limits}
            made = parity(id, self.pair, *steps, gate=gate or None, note=self.note)
        return replace(made, output=output)

    def _grid(self, output: str, position: int) -> Grid:
        """Grid in whose steps an output is compared: the reference's, if it has one."""
        for side in (self.a, self.b):
            grid = side.grids[position] if side.grids else None
            if grid is not None:
                return grid
        raise FuseqError(
            "FQ012",
            f"neither side says on which grid output '{output}' is",
            why="steps are counted on the grid of a bundle, a program or an integer output",
            fix="name the file inside its bundle, or limit sqnr_db instead",
        )

    def _bounds(self, expected: Sequence[Sequence[np.ndarray]]) -> list[list[float]]:
        """What rounding explains, relative to the largest output, by batch and output."""
        programs = [p for p in (self.a.knowledge, self.b.knowledge) if p]
        if len(programs) < 2 or self.a.integers or self.b.integers:
            return [[FLOAT32_FORMS] * len(outputs) for outputs in expected]
        return [
            relative_limits(float32_bound(tensors(batch), *programs), outputs)
            for batch, outputs in zip(self.batches, expected, strict=True)
        ]

    def _metrics(self, evaluate: Evaluate | None) -> list[Check]:
        """The user's metrics of both sides, held to how much each may fall."""
        allowed = self.limits.metric_drop
        if not allowed:
            return []
        if evaluate is None:
            raise FuseqError(
                "FQ012",
                "`metric_drop` needs a metric, and the reference has none",
                fix="evaluate(run) in the model file that is the reference",
            )
        before, after = (metrics_of(evaluate, _as_function(side)) for side in (self.a, self.b))
        missing = [name for name in allowed if name not in before]
        if missing:
            raise FuseqError(
                "FQ012",
                f"`metric_drop` has a limit of '{missing[0]}', which evaluate() does not give",
                why=f"it gives {', '.join(before)}",
                fix="name one of them",
            )
        drops = {f"{name}_drop": before[name] - after[name] for name in allowed}
        gate = {f"{name}_drop": limit for name, limit in allowed.items()}
        passed = all(drops[name] <= limit for name, limit in gate.items())
        return [Check("metrics", self.pair, "fidelity", {**before, **drops}, gate, passed)]


def steps_of(values: np.ndarray, grid: Grid) -> np.ndarray:
    """Integers, on a grid, of reals that may lie on another one."""
    scale, zero_point = float(grid.scale), int(grid.zero_point)
    return np.rint(values.astype(np.float64) / scale).astype(np.int64) + zero_point


def _as_function(side: Side) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: ran(side, side.run, (np.asarray(x, np.float32),))[0]


def _bundle(thing: object) -> Bundle:
    if isinstance(thing, Bundle):
        return thing
    if isinstance(thing, str | Path):
        return read_bundle(Path(thing))
    raise FuseqError(
        "FQ009",
        "a model alone has nothing to be compared with",
        fix="give two: fuseq check model.py build/model; a bundle alone has golden outputs",
    )
