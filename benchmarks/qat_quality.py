"""PSNR of the deployed INT8 network after 200 steps of QAT: ours, torch.ao FX, and no QAT.

    python -m benchmarks.qat_quality

starts from one float network (the x3 student, RepConv blocks, 500 steps) and trains it with each
for 200 steps on the same data, by the recipe of `benchmarks.peers.bed`. The control trains
the fused network in float just as long and quantizes it afterwards: plainly, and with the aids that
`fuseq ptq` has by default. One row gives torch.ao the
network that ours begins with, equalized: what is left of the difference is that of the training.

"Deployed" is what ships: for ours, PTQ and the control the ONNX file in ONNX Runtime, for torch.ao
FX its int8 kernels. Other toolkits are compared by `benchmarks.peers`.
"Trained" is the network in training form, for the control in float. Both in dB on 32 held-out
images, as mean over the seeds of the data and 95 % confidence interval (Student). The last column
is the mean of the differences, seed by seed, from the better variant of torch.ao FX. Progress goes
to stderr.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

import fuseq
from benchmarks import sr_student
from benchmarks.intervals import mean_half_width
from benchmarks.peers.bed import Prepared, Student, train, tune
from benchmarks.qat_runs import (
    deployed,
    fused_student,
    fx,
    ours,
    ptq,
    shipped_psnr,
    training_batches,
)
from benchmarks.sr_student import module_psnr, say
from fuseq import plugins
from fuseq.api import captured
from fuseq.pass_spec import parse_passes
from fuseq.program import Program

Result = tuple[float, float]
"""PSNR in dB of the network in training form, and of what is deployed."""

EQUALIZED = "equalized by us, then torch.ao FX, v0"

OURS: dict[str, dict[str, object]] = {
    "ours": {},
    "ours, fusion only before": {"passes": "fuse-affine"},
    "ours, learned scales": {"learn_scales": True},
}


def ptq_with_aids(model: nn.Module | Program) -> Program:
    """Quantized after training as `fuseq ptq` does it."""
    images = sr_student.calibration()
    steps = parse_passes(
        "equalize,legalize,quantize{observer=mse},round-weights",
        profile=plugins.load("backends", "onnx").profile,
        calibration=images,
    )
    return fuseq.Pipeline(steps).run(captured(model, images[0]))


PTQ: dict[str, Callable[[nn.Module | Program], Program]] = {
    "minmax": ptq,
    "mse": partial(ptq, observer="mse"),
    "with aids": ptq_with_aids,
}


def equalized(model: nn.Module) -> Student:
    """The network as ours begins with it, for others: what QAT gives apart from equalizing."""
    images = sr_student.calibration()
    passes = "recalibrate-bn,fuse-affine,equalize"
    return fused_student(fuseq.fuse(model, images[0], passes=passes, calibration=images)).eval()


def quantization_aware(prepare: Callable[[], Prepared], seed: int, steps: int) -> list[Result]:
    """Prepared, trained and deployed."""
    prepared = prepare()
    train(prepared, training_batches(seed), steps)
    return [(module_psnr(prepared.module), shipped_psnr(prepared))]


def control(model: Student, seed: int, steps: int) -> list[Result]:
    """Trained in float; then quantized in each of the `PTQ` ways."""
    tuned = copy.deepcopy(model).train()
    tune(tuned, training_batches(seed), steps)
    in_float = module_psnr(tuned)
    return [(in_float, module_psnr(deployed(way(tuned.eval())))) for way in PTQ.values()]


def table(rows: dict[str, list[Result]]) -> str:
    """Markdown."""
    shipped_by_fx = [[r[1] for r in rows[n]] for n in rows if n.startswith("torch.ao FX")]
    best = max(shipped_by_fx, key=statistics.mean, default=[])
    lines = ["| run | trained dB | deployed dB | each seed | above FX |", "|---|---|---|---|---|"]
    for name, results in rows.items():
        trained, shipped = ([r[i] for r in results] for i in (0, 1))
        each = " / ".join(f"{value:.3f}" for value in shipped if not math.isnan(value))
        above = [a - b for a, b in zip(shipped, best, strict=False)] if len(shipped) > 1 else []
        cells = (name, interval(trained), interval(shipped), each, interval(above))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(values: Sequence[float]) -> str:
    """`mean ± half width`, as far as there are values."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return ""
    mean = f"{statistics.mean(known):.3f}"
    return mean if len(known) < 2 else f"{mean} ± {mean_half_width(known):.3f}"


def main() -> None:
    """Train all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--start", choices=sr_student.STARTS, default="anchor")
    parser.add_argument("--only", default="", help="runs whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model: nn.Module = sr_student.trained(start=options.start)
    program = fuseq.fuse(model, sr_student.calibration()[0])
    fused = fused_student(program).eval()
    start = module_psnr(fused)
    rows: dict[str, list[Result]] = {
        "bicubic": [(sr_student.bicubic_psnr(), math.nan)],
        "float at the start": [(start, math.nan)],
    }
    for way, quantized in PTQ.items():
        rows[f"PTQ, {way}"] = [(start, module_psnr(deployed(quantized(program))))]
    runs: dict[str, Callable[[int, int], list[Result]]] = {
        "control: float, then PTQ": partial(control, fused),
        "torch.ao FX, v0": partial(quantization_aware, partial(fx, fused, 0)),
        "torch.ao FX, v1": partial(quantization_aware, partial(fx, fused, 1)),
        EQUALIZED: partial(quantization_aware, lambda: fx(equalized(model), 0)),
        **{n: partial(quantization_aware, partial(ours, model, **o)) for n, o in OURS.items()},
    }
    chosen = {name: run for name, run in runs.items() if options.only in name}
    for (name, run), seed in itertools.product(chosen.items(), range(options.seeds)):
        say(f"{name}, seed {seed}")
        try:
            results = run(seed, options.steps)
        except ImportError as error:
            say(f"  not installed: {error}")
            continue
        labels = [name] if len(results) == 1 else [f"{name} {way}" for way in PTQ]
        for label, result in zip(labels, results, strict=True):
            say(f"  {label}: {result[0]:.3f} {result[1]:.3f}")
            rows.setdefault(label, []).append(result)
    print(table(rows))


if __name__ == "__main__":
    main()
