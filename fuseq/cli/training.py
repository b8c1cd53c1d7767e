"""`fuseq qat`: the user's own training loop, between a prepared model and a checked bundle."""

from __future__ import annotations

import inspect
import itertools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch.utils import _pytree as pytree

import fuseq
from fuseq.api import Progress, captured, structure_counts
from fuseq.bundle import Bundle, require_writable
from fuseq.cli.kept_curriculum import KeptCurriculum
from fuseq.cli.models import Source, lowered
from fuseq.cli.progress import progress
from fuseq.cli.streams import Result, message
from fuseq.cli.tables import table
from fuseq.equivalence.lowered import metrics_of
from fuseq.errors import FuseqError
from fuseq.pass_spec import parse_backend
from fuseq.program import Program
from fuseq.qat.curriculum import Curriculum
from fuseq.qat.model import QatModel, float_program
from fuseq.qat.preparation import prepare
from fuseq.target import Target
from fuseq.user_code import load_function, user_code


def qat(
    source: Source,
    *,
    fit: str,
    backend: str,
    out: Path,
    stages: str,
    observer: str,
    learn_scales: bool,
    unfused: bool,
    resume: Path | None,
    force: bool,
    quiet: bool,
) -> Result:
    """`fuseq qat`."""
    start = time.perf_counter()
    # What can be refused without running the user's code is refused first.
    chosen, lengths = parse_backend(backend), _lengths(stages)
    require_writable(out, force)
    kept = Path(f"{out}.qat.pt")
    if os.path.lexists(kept) and not force and not (resume and resume.resolve() == kept.resolve()):
        raise FuseqError(
            "FQ008",
            f"'{kept}' holds the state of a training",
            fix=f"--resume {kept} continues it, --force replaces it, or another -o",
        )
    names = ("observe", "tune", "freeze")
    totals = dict(zip(names, itertools.accumulate(lengths), strict=True))
    with progress(quiet, totals) as report:
        report("load", 0)
        target = source.load()
        train = _loop(fit)
        data = source.batches(target)
        program = captured(target.model, target.example_inputs, progress=report)
        model = prepare(
            program,
            target=chosen.name,
            calibration=data,
            observer=observer,
            unfused=unfused,
            learn_scales=learn_scales,
            progress=report,
        )
        curriculum = KeptCurriculum(model, lengths, kept, report)
        before = _before(target, model, report)
        if resume:
            curriculum.resume(resume)
        try:
            _train(train, model.train(), curriculum)
            bundle = fuseq.lower(
                float_program(model) if unfused else model,
                backend=chosen,
                out=out,
                calibration=data,
                observer=observer if unfused else None,
                evaluate=target.function("evaluate"),
                force=force,
                progress=report,
            )
        except BaseException:
            if curriculum.kept:
                message(f"note: the training is kept: --resume {kept} continues it")
            raise
    assert bundle.result is not None
    after = next(c.metrics for c in bundle.result.checks if c.id == "int8-vs-float")
    quality = [
        {"name": name, **values, "int8_after": after.get(f"{name}_int8", after[name])}
        for name, values in before.items()
    ]
    extra = {"checkpoint": str(kept), "metrics": quality}
    if quality:
        message(_quality(quality))
    else:
        message("note: the target has no evaluate(run), so the gain was not measured")
    return lowered(bundle, data, start, _counts(program, bundle), extra)


def _counts(program: Program, bundle: Bundle) -> dict[str, dict[str, int]]:
    """What was captured, and what ships; the bundle knows no more than what was trained."""
    return {
        name: {**bundle.manifest[name], **{k: v for k, v in counts.items() if "before" in k}}
        for name, counts in structure_counts(program, program).items()
    }


def _lengths(stages: str) -> tuple[int, int, int]:
    parts = stages.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise FuseqError(
            "FQ007",
            f"cannot read --stages {stages}",
            fix="--stages 30,60,60: epochs of observe, tune and freeze",
        )
    observe, tune, freeze = map(int, parts)
    return observe, tune, freeze


def _loop(fit: str) -> Callable[[QatModel, Curriculum], object]:
    """The user's training loop; what it raises is told with its line."""
    module, function = load_function(fit, "fit")
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError) as error:
        raise FuseqError(
            "FQ007",
            f"'{fit}' does not take (model, curriculum): {error}",
            fix="def fit(model, curriculum): ...",
        ) from error

    def run(model: QatModel, curriculum: Curriculum) -> None:
        with user_code(f"'{fit}'", module):
            function(model, curriculum)

    return run


def _train(
    train: Callable[[QatModel, Curriculum], object], model: QatModel, curriculum: KeptCurriculum
) -> None:
    """Run the loop, and keep its state when it ends or is interrupted."""
    try:
        train(model, curriculum)
    except KeyboardInterrupt:
        try:
            curriculum.keep()
        except FuseqError as error:
            message(f"warning: this state is not kept: {error.what}")
        raise
    left = len(curriculum.epochs) - 1
    if left > 0:
        message(
            f"warning: the loop ended {left} epochs early, in stage '{curriculum.stage.name}'\n"
            "  help: for epoch in curriculum.epochs: curriculum.step(epoch); ..., or --stages"
        )
    curriculum.position = curriculum.epochs.stop  # nothing is left to do for --resume
    curriculum.keep()


def _before(target: Target, model: QatModel, report: Progress) -> dict[str, dict[str, float]]:
    """The user's metrics of the float network and of the integers that training starts from."""
    evaluate = target.function("evaluate")
    if evaluate is None:
        return {}
    report("evaluate", 0)

    def run(network: Callable[[Tensor], Any]) -> Mapping[str, float]:
        with torch.no_grad():
            return metrics_of(
                evaluate, lambda x: pytree.tree_leaves(network(torch.from_numpy(x)))[0].numpy()
            )

    float_metrics, int8_metrics = run(model.network), run(model.eval())
    return {
        name: {"float": value, "int8_before": int8_metrics[name]}
        for name, value in float_metrics.items()
    }


def _quality(metrics: list[dict[str, Any]]) -> Table:
    shown = table("", "float", "int8, calibrated", "int8, trained")
    for row in metrics:
        values = (row[key] for key in ("float", "int8_before", "int8_after"))
        shown.add_row(row["name"], *(f"{value:#.4g}" for value in values))
    return shown
