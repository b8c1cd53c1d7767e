"""The order of fusion and QAT: what training the deployed graph gives over training the branches.

    python -m benchmarks.deploy_before_qat

For each seed the x3 student is trained in float, 500 steps, and then quantized in three ways:

- PTQ: recalibrate batch norms, fuse, calibrate;
- QAT, then fusion: QAT on the multi-branch graph with folded batch norms, 200 steps; fuse what was
  trained, calibrate anew;
- fusion, then QAT: recalibrate, fuse, 200 steps of QAT on the graph that ships.

Seeds differ in the first weights and in the data of both trainings. Every PSNR is that of the INT8
ONNX file in ONNX Runtime on 32 held-out images, in dB. Differences are paired, seed by seed, with
their 95 % confidence interval (Student). Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time

import torch
from torch import nn

import fuseq
from benchmarks import sr_student
from benchmarks.intervals import mean_half_width
from benchmarks.peers.bed import Prepared, train
from benchmarks.qat_runs import (
    branches_apart,
    deployed,
    ours,
    ptq,
    shipped_psnr,
    training_batches,
)
from benchmarks.sr_student import calibration, module_psnr, say
from fuseq.program import Program

FLOAT, PTQ, QAT_THEN_FUSION, FUSION_THEN_QAT = (
    "float, fused",
    "PTQ",
    "QAT, then fusion",
    "fusion, then QAT",
)


def measured(seed: int, options: argparse.Namespace) -> dict[str, float]:
    """PSNR of each way, from one float network."""
    model = sr_student.trained(seed, options.float_steps, options.start)
    program = recalibrated(model)
    result = {
        FLOAT: module_psnr(program),
        PTQ: module_psnr(deployed(ptq(program))),
        QAT_THEN_FUSION: after_training(branches_apart(model), seed, options.steps),
        FUSION_THEN_QAT: after_training(ours(model), seed, options.steps),
    }
    say(f"seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in result.items()))
    return result


def recalibrated(model: nn.Module) -> Program:
    """Fused after its batch norms were recalibrated."""
    images = calibration()
    return fuseq.fuse(model, images[0], passes="recalibrate-bn,fuse-affine", calibration=images)


def after_training(prepared: Prepared, seed: int, steps: int) -> float:
    """PSNR of what is deployed after QAT."""
    train(prepared, training_batches(seed), steps)
    return shipped_psnr(prepared)


def table(results: list[dict[str, float]]) -> str:
    """Markdown: each way, then the differences."""
    lines = ["| way | mean dB | standard deviation | each seed |", "|---|---|---|---|"]
    for name in results[0]:
        values = [result[name] for result in results]
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        each = " / ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {name} | {statistics.mean(values):.3f} | {spread:.3f} | {each} |")
    lines += ["", "| difference | mean dB | standard deviation | 95 % |", "|---|---|---|---|"]
    for first, second in itertools.combinations((FUSION_THEN_QAT, QAT_THEN_FUSION, PTQ), 2):
        values = [result[first] - result[second] for result in results]
        mean, half = statistics.mean(values), mean_half_width(values)
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        lines.append(
            f"| {first} - {second} | {mean:+.3f} | {spread:.3f} "
            f"| {mean - half:+.3f} to {mean + half:+.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run every seed, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--float-steps", type=int, default=sr_student.FLOAT_STEPS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--start", choices=sr_student.STARTS, default="anchor")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = [measured(seed, options) for seed in range(options.seeds)]
    print(table(results))
    print(f"\n{time.process_time() / 60:.1f} CPU minutes, float training included if not cached")


if __name__ == "__main__":
    main()
