"""`prepare`: from a trained model to one that is trained further in the integers that ship."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from fuseq import plugins
from fuseq.affine.fuse import fuse as fuse_affine
from fuseq.affine.price import CostModel
from fuseq.api import Progress, captured, run_passes
from fuseq.arguments import ExampleInputs
from fuseq.errors import FuseqError
from fuseq.pass_spec import parse_passes
from fuseq.program import Program
from fuseq.qat import distribution
from fuseq.qat.model import QatModel
from fuseq.quant.calibrate import repeatable
from fuseq.quant.measured import measure
from fuseq.requirements import batch_norms_folded

PASSES = "recalibrate-bn,fuse-affine,equalize"
"""What runs before `legalize`: the graph that is trained is the one that is deployed."""

UNFUSED_PASSES = "recalibrate-bn,fold-bn"
"""The same for a graph whose branches are trained apart."""


def prepare(
    model: nn.Module | Program,
    example_inputs: ExampleInputs | None = None,
    *,
    target: str = "onnx",
    calibration: Iterable[Any],
    observer: str = "minmax",
    passes: str | None = None,
    unfused: bool = False,
    learn_scales: bool = False,
    keep: Sequence[str] = (),
    wide: Sequence[str] = (),
    activation: str | None = None,
    per_channel: bool | None = None,
    progress: Progress | None = None,
) -> QatModel:
    """Recalibrate, fuse, equalize and legalize a model, calibrate it, and make it trainable.

    Args:
        model: a trained module, which stays as it is; or a program.
        example_inputs: what to capture a module with.
        target: name of a backend; its profile says what becomes an integer.
        calibration: batches of inputs, read several times; an iterator is read into memory first.
            In a distributed run each rank gives its own part, and every rank looks at all of them.
        observer: minmax, moving-average, percentile or mse: the first ranges.
        passes: what runs before `legalize`, instead of `PASSES` or `UNFUSED_PASSES`.
        unfused: train branches apart although fusion would make them one convolution: each costs
            its own time and its own quantizer, and the grids that are learned end with fusion
            (`float_program`). The baseline that deploy-before-QAT is compared with.
        learn_scales: train scales by gradients (LSQ) instead of following ranges.
        keep: names of nodes that stay float.
        wide: names of nodes whose values have 16 bits; what shares a grid with them has too.
        activation: dtype of activations; None for the target's first.
        per_channel: whether weights have one scale per output channel; None for what the target
            has.
        progress: called as stages advance.

    Returns:
        The model, in training mode, observing; of a distributed run that of rank 0, on every rank.

    Raises:
        FuseqError: FQ403 for passes that leave branches apart, FQ006 for data that is empty or does
            not fit, FQ401 for values that are not finite, and as capture and passes raise.
    """
    data = repeatable(calibration)
    assert data is not None
    if distribution.is_distributed():
        data = distribution.BatchesOfAllRanks(data)
    profile = plugins.load("backends", target).profile
    program = captured(model, example_inputs, progress=progress)
    if passes is None:
        passes = UNFUSED_PASSES if unfused else PASSES
    program = run_passes(parse_passes(passes, profile=profile, calibration=data), program, progress)
    if not unfused:
        _require_fused(program)
    program = run_passes(parse_passes("legalize", profile=profile), program, progress).clone()
    reason = batch_norms_folded(program)
    if reason:
        raise FuseqError("FQ201", f"QAT needs folded batch norms: {reason}", fix="fuse-affine")
    if progress:
        progress("calibrate", 0)
    measured = measure(
        program,
        profile,
        data,
        observer=observer,
        keep=keep,
        wide=wide,
        activation=activation,
        per_channel=per_channel,
    )
    structure, observers = measured.structure, measured.observers
    program.module.requires_grad_(True)
    free = {group: o for group, o in observers.items() if group not in structure.fixed}
    prepared = QatModel(
        program,
        measured.profile,
        structure,
        ranges={group: o.range(structure.dtypes[group]) for group, o in free.items()},
        extremes={group: (o.low, o.high) for group, o in free.items()},
        learn_scales=learn_scales,
        observer=observer,
    )
    distribution.follow_first(prepared)
    return prepared


def _require_fused(program: Program) -> None:
    if any(record.name.startswith("fuse-affine") for record in program.history):
        return
    certificates = fuse_affine(program.clone(), CostModel()).certificates
    if certificates:
        raise FuseqError(
            "FQ403",
            f"{len(certificates)} regions would become one convolution each, and were not fused",
            why="their branches would be trained apart, each on its own grid, and shipped as one",
            fix="leave out `passes`, or say unfused=True to train it nevertheless",
        )
