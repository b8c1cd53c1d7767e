"""`fuseq ptq`: `lower` with the aids that need data only, and a look at the values afterwards."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

import fuseq
from fuseq.backend import Backend
from fuseq.bundle import require_writable
from fuseq.cli.models import Source, lowered
from fuseq.cli.progress import progress
from fuseq.cli.streams import Result, message
from fuseq.cli.tables import table
from fuseq.errors import FuseqError
from fuseq.pass_spec import parse_backend, parse_passes, with_options
from fuseq.quant.sensitivity import Form, Sensitivity
from fuseq.quant.tensor_statistics import TensorStatistics, tensor_statistics
from fuseq.requirements import quantized
from fuseq.rewrite import Pass

WORST = "worst:"
SHOWN = 10
"""Values that the table of the worst shows."""


def ptq(
    source: Source,
    *,
    backend: str,
    out: Path,
    aids: str,
    observer: str,
    keep: Sequence[str],
    form: Form,
    force: bool,
    quiet: bool,
) -> Result:
    """`fuseq ptq`."""
    start = time.perf_counter()
    chosen = parse_backend(backend)
    passes = pipeline(chosen, aids, observer, keep, form)
    require_writable(out, force)
    totals: dict[str, int] = {}
    with progress(quiet, totals) as report:
        report("load", 0)
        target = source.load()
        data = source.batches(target)
        if data.count:
            totals |= {"quantize": data.count, "values": data.count}
        bundle = fuseq.lower(
            target.model,
            target.example_inputs,
            backend=chosen,
            out=out,
            calibration=data,
            passes=passes,
            evaluate=target.function("evaluate"),
            force=force,
            progress=report,
        )
        program = bundle.program
        assert program is not None
        report("values", 0)
        values = tensor_statistics(program, data, lambda done: report("values", done))
    ranking = list(program.details(Sensitivity))
    if ranking:
        message(_ranking(ranking))
    message(_worst(values))
    for value in values:
        for channels, what in ((value.dead, "always zero"), (value.outliers, "outliers")):
            if channels:
                count = f"{len(channels)} of {value.channels} channels"
                message(f"note: {what} in `{value.node}`: {count}, first {channels[0]}")
    extra = {
        "passes": [record.name for record in program.history],
        "tensors": [dataclasses.asdict(value) for value in values],
        "sensitivities": [dataclasses.asdict(part) for part in ranking],
    }
    return lowered(bundle, data, start, bundle.manifest, extra)


def pipeline(backend: Backend, aids: str, observer: str, keep: Sequence[str], form: Form) -> str:
    """The backend's passes with aids among them, as `--passes` spells it.

    Args:
        backend: its pipeline has `quantize` in it.
        aids: passes; those that require a quantized program go behind `quantize`, all others
            before what prepares the program for the target.
        observer: how ranges are measured.
        keep: names of nodes that do not get 8 bits; `worst:N` for those that cost most.
        form: what they get instead.

    Raises:
        FuseqError: FQ012 for a backend that does not quantize, and for a budget that is no number.
    """
    steps = parse_passes(backend.pipeline)
    names = [step.name for step in steps]
    if "quantize" not in names:
        raise FuseqError(
            "FQ012", f"backend '{backend.name}' has no int8 form", fix="-b onnx, or fuseq lower"
        )
    named = tuple(name for name in keep if not name.startswith(WORST))
    options: dict[str, Any] = {"keep" if form == "float" else "wide": named}
    for budget in keep:
        if budget.startswith(WORST):
            options |= {"worst": _count(budget), "worst_as": form}
    steps = with_options(steps, "quantize", observer=observer, **options)
    extra = parse_passes(aids)
    at = names.index("legalize" if "legalize" in names else "quantize")
    behind = names.index("quantize") + 1
    ordered = [
        *steps[:at],
        *(step for step in extra if not _is_behind(step)),
        *steps[at:behind],
        *(step for step in extra if _is_behind(step)),
        *steps[behind:],
    ]
    return ",".join(step.spelled() for step in ordered)


def _is_behind(step: Pass) -> bool:
    return quantized in step.requires


def _count(budget: str) -> int:
    number = budget.removeprefix(WORST)
    if not number.isdecimal() or int(number) < 1:
        raise FuseqError("FQ012", f"cannot read '{budget}'", fix="--keep worst:2")
    return int(number)


def _ranking(parts: Sequence[Sensitivity]) -> Table:
    shown = table("costs most alone", "", "SQNR dB", "share")
    for part in parts[:SHOWN]:
        shown.add_row(part.node, part.kind, f"{part.sqnr_db:.1f}", f"{part.share:.1%}")
    return shown


def _worst(values: Sequence[TensorStatistics]) -> Table:
    shown = table("worst values", "range", "step", "clipped", "SQNR dB", "RMSE in steps")
    for value in values[:SHOWN]:
        shown.add_row(
            value.node,
            f"{value.low:.4g} .. {value.high:.4g}",
            f"{value.scale:.3g}" + (f" {value.dtype}" if value.dtype != "uint8" else ""),
            f"{value.clipped:.2%}",
            f"{value.sqnr_db:.1f}",
            f"{value.rmse_steps:.2f}",
        )
    return shown
