"""The commands that run a model: lower, fuse."""

from __future__ import annotations

import resource
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

import fuseq
from fuseq.affine.prove import Certificate
from fuseq.affine.refusal import Refusal
from fuseq.amounts import large
from fuseq.backend import Backend
from fuseq.bundle import Bundle, require_writable
from fuseq.calibration import CalibrationSource, load_calibration
from fuseq.cli.check_tables import checks_table, verdict
from fuseq.cli.explanation import explanation
from fuseq.cli.progress import progress
from fuseq.cli.streams import Result, message
from fuseq.cli.tables import table
from fuseq.errors import FuseqError
from fuseq.pass_spec import parse_backend, parse_passes
from fuseq.target import Target, load_target, parse_arguments

FLOAT_PASSES = "fuse-affine"
FRONT_ENDS = {"fx": "torch.fx", "export": "torch.export"}


@dataclass(frozen=True)
class Source:
    """A target and its data, as they are named on the command line.

    Attributes:
        target: `model.py[:factory]` or `package.module:factory`.
        arguments: `key=value` for the factory.
        inputs: shapes of the example inputs.
        weights: file of a state dict.
        calibration: source of calibration data, or None for the target's own.
        samples: largest number of calibration batches.
    """

    target: str
    arguments: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    weights: Path | None = None
    calibration: str | None = None
    samples: int = 128

    def load(self) -> Target:
        """Run the user's factory."""
        arguments = parse_arguments(self.arguments)
        return load_target(
            self.target, arguments=arguments, inputs=self.inputs, weights=self.weights
        )

    def batches(self, target: Target) -> CalibrationSource:
        """The calibration data, read as it is needed."""
        return load_calibration(self.calibration, target, self.samples)


def for_chips(backend: Backend, chips: Sequence[str]) -> Backend:
    """A backend that compiles for chips too.

    Raises:
        FuseqError: FQ007 for an unknown chip, FQ012 for a backend that compiles for none.
    """
    if not chips:
        return backend
    if not backend.known_chips:
        raise FuseqError(
            "FQ012",
            f"backend '{backend.name}' compiles for no chip",
            fix="leave out --chip, or choose a backend of `fuseq backends` that does",
        )
    return replace(backend, chips=tuple(chips))  # type: ignore[type-var]


def lower(
    source: Source,
    *,
    backend: str,
    chips: Sequence[str],
    out: Path,
    passes: str | None,
    observer: str | None,
    force: bool,
    quiet: bool,
) -> Result:
    """`fuseq lower`."""
    start = time.perf_counter()
    # What can be refused without running the user's code is refused first.
    chosen = for_chips(parse_backend(backend), chips)
    pipeline = chosen.pipeline if passes is None else passes
    needs_data = any(hasattr(step, "calibration") for step in parse_passes(pipeline))
    require_writable(out, force)
    totals: dict[str, int] = {}
    with progress(quiet, totals) as report:
        report("load", 0)
        target = source.load()
        data = source.batches(target) if needs_data or source.calibration else None
        if data and data.count:
            totals["quantize"] = data.count
        bundle = fuseq.lower(
            target.model,
            target.example_inputs,
            backend=chosen,
            out=out,
            calibration=data,
            passes=passes,
            observer=observer,
            evaluate=target.function("evaluate"),
            force=force,
            progress=report,
        )
    return lowered(bundle, data, start, bundle.manifest, {})


def lowered(
    bundle: Bundle,
    data: CalibrationSource | None,
    start: float,
    counts: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> Result:
    """What a command answers that wrote a bundle.

    Args:
        bundle: with the checks of its lowering.
        data: calibration data, if there was any.
        start: `time.perf_counter()` when the command began.
        counts: of ops, parameters and MACs, before and after.
        extra: more of the document.
    """
    assert bundle.result is not None
    message(Group(*_counts(counts)))
    document = {
        "bundle": str(bundle.path),
        **extra,
        "ops": counts["ops"],
        "parameters": counts["parameters"],
        "files": bundle.manifest["files"],
        **bundle.result.to_json(),
        "warnings": bundle.manifest["warnings"],
        "float_islands": bundle.manifest["float_islands"],
        "runtime_float_ops": bundle.manifest["runtime_float_ops"],
        "seconds": round(time.perf_counter() - start, 3),
        "peak_rss_mb": _peak_memory(),
    }
    show_warnings(bundle.manifest["warnings"])
    for island in bundle.manifest["float_islands"]:
        message(f"note: `{island}` stays float")
    if data and data.synthetic:
        message("note: calibrated on random numbers; the bundle is stamped synthetic")
    message(checks_table(bundle.result))
    message(verdict(bundle.result))
    message(f"next: fuseq report {shlex.quote(str(bundle.path))}")
    return Result(document, str(bundle.path), bundle.result.passed)


def fuse(source: Source, *, passes: str | None, explain: bool, quiet: bool) -> Result:
    """`fuseq fuse`."""
    pipeline = FLOAT_PASSES if passes is None else passes
    needs_data = any(hasattr(step, "calibration") for step in parse_passes(pipeline))
    with progress(quiet, {}) as report:
        report("load", 0)
        target = source.load()
        data = source.batches(target) if needs_data else None
        program = fuseq.fuse(
            target.model,
            target.example_inputs,
            passes=pipeline,
            calibration=data,
            progress=report,
        )
    assert program.report is not None
    show_warnings(program.report["warnings"])
    shown = _fusion(program.report)
    if explain:
        shown += explanation(program.details(Certificate), program.details(Refusal))
    return Result(program.report, Group(*shown))


def show_warnings(warnings: Iterable[Mapping[str, Any]]) -> None:
    """Print what looks wrong with the model, beside the result."""
    for found in warnings:
        place = f"`{found['node']}`" + (f" ({found['source']})" if found["source"] else "")
        message(f"warning: {place}: {found['message']}\n  help: {found['fix']}")


def _peak_memory() -> float:
    """Largest resident size of this process in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _counts(report: Mapping[str, Any]) -> list[RenderableType]:
    counts = table("", "before", "after")
    for name, key in (("convolutions", "conv"), ("batch norms", "bn")):
        counts.add_row(name, *(str(report["ops"][f"{key}_{when}"]) for when in ("before", "after")))
    counts.add_row("parameters", *(f"{n:,}" for n in report["parameters"].values()))
    counts.add_row("MACs", *(large(n) for n in report["macs"].values()))
    return [counts]


def _fusion(report: Mapping[str, Any]) -> list[RenderableType]:
    error = (
        f"largest error: {report['max_rel_error_f64']:.1e} relative in float64, "
        f"{report['max_abs_error_f32']:.1e} absolute in float32\n"
        f"(rounding explains {report['float32_bound']:.1e} in float32)"
    )
    captured = f"captured with {FRONT_ENDS[report['capture']]}"
    return [*_counts(report), error, captured, *(f"note: {note}" for note in report["notes"])]
