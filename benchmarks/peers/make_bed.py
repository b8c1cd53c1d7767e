"""Writes the bed: the x3 student of the QAT benchmarks, trained in float, fused, and its images."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from torch import nn

import fuseq
from benchmarks import sr_student
from benchmarks.peers.bed import Bed
from benchmarks.qat_runs import fused_student, training_batches


def made(folder: Path, seeds: int, steps: int) -> tuple[Bed, nn.Module]:
    """The bed, with training batches for some seeds of the data, and the network with branches."""
    folder.mkdir(parents=True, exist_ok=True)
    model = sr_student.trained()
    calibration = sr_student.calibration()
    student = fused_student(fuseq.fuse(model, calibration[0]))
    torch.save(student.state_dict(), folder / "student.pt")
    np.save(folder / "calibration.npy", torch.cat(calibration).numpy())
    planes = sr_student.example("data").images.to_planes
    held_out = [planes(low) for low, _ in sr_student.pairs(sr_student.HELD_OUT_SEEDS)]
    np.save(folder / "held_out.npy", np.stack(held_out))
    for seed in range(seeds):
        batches = itertools.islice(training_batches(seed), steps)
        for part, patches in zip(("low", "high"), zip(*batches, strict=True), strict=True):
            pixels = (255 * torch.stack(patches)).round().to(torch.uint8)
            np.save(folder / f"{part}-{seed}.npy", pixels.numpy())
    return Bed(folder), model
