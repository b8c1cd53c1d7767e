"""What a training step costs in QAT, over a float step of the same fused network.

    python -m benchmarks.qat_step

times whole steps (forward, L1, backward, Adam) of the fused x3 student on 4 patches 64 x 64, on one
thread, in CPU time. All take turns, and a ratio is the median over rounds of a step's time to the
float step of its round, with its 95 % confidence interval (order statistics): a machine whose speed
drifts compares like with like. Saved MiB are those of tensors that autograd keeps for the backward
pass, each storage once, parameters left out. Observing: all grids follow the batch. Frozen:
activations keep their grids, weights follow. All frozen: weights keep theirs too.

Toolkits that are not installed are named with the reason. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

import fuseq
from benchmarks import sr_student
from benchmarks.peers.bed import Prepared
from benchmarks.peers.training_step import Step, timed
from benchmarks.qat_runs import fused_student, fx, ours
from fuseq.latency import median_interval

STAGES = ("observing", "frozen", "all frozen")


def in_stage(prepare: Callable[[], Prepared], stage: str, batch: tuple[Tensor, Tensor]) -> Step:
    """A prepared network in one of the stages, after a step of observing."""
    prepared = prepare()
    step = Step(prepared.module, batch)
    step()
    if stage != "observing":
        prepared.freeze_activations()
    if stage == "all frozen":
        prepared.freeze_all()
    return step


def steps(model: nn.Module) -> dict[str, Step | str]:
    """A step for each row, or the reason why there is none."""
    batch = next(sr_student.batches(0))
    fused = fused_student(fuseq.fuse(model, batch[0])).train()
    prepares: dict[str, tuple[Callable[[], Prepared], tuple[str, ...]]] = {
        "ours": (partial(ours, model), STAGES),
        "ours, learned scales": (partial(ours, model, learn_scales=True), ("observing",)),
        **{f"torch.ao FX, v{v}": (partial(fx, fused, v), STAGES) for v in (0, 1)},
    }
    rows: dict[str, Step | str] = {"float": Step(fused, batch)}
    for name, (prepare, stages) in prepares.items():
        for stage in stages:
            try:
                rows[f"{name}, {stage}"] = in_stage(prepare, stage, batch)
            except ImportError as error:
                rows[name] = f"not installed: {error}"
                break
    return rows


def main() -> None:
    """Time all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--float-steps", type=int, default=sr_student.FLOAT_STEPS)
    parser.add_argument("--only", default="", help="rows whose name contains this, and float")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = steps(sr_student.trained(steps=options.float_steps))
    runnable = {
        name: step
        for name, step in rows.items()
        if isinstance(step, Step) and (name == "float" or options.only in name)
    }
    saved = {name: step.saved_mebibytes() for name, step in runnable.items()}
    seconds = timed(runnable, options.rounds)
    print("| step | time / float | 95 % | CPU ms | saved MiB | saved / float |")
    print("|---|---|---|---|---|---|")
    for name, step in rows.items():
        if isinstance(step, str):
            print(f"| {name} | {step} | | | | |")
        elif name in seconds:
            ratios = [a / b for a, b in zip(seconds[name], seconds["float"], strict=True)]
            low, high = median_interval(ratios)
            print(
                f"| {name} | {statistics.median(ratios):.2f} | {low:.2f} to {high:.2f} "
                f"| {1000 * statistics.median(seconds[name]):.0f} "
                f"| {saved[name]:.1f} | {saved[name] / saved['float']:.2f} |"
            )


if __name__ == "__main__":
    main()
