"""Runs of quantization-aware training: the common recipe, and our side of it.

The recipe is that of the reference study: Adam at 3e-4 with a cosine down to 0, 4 patches 64 x 64,
L1. Observers of activations stop after 20 % of the steps, all grids are frozen after 60 %.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fuseq
import fuseq.qat
from benchmarks import sr_student
from fuseq import ops
from fuseq.backends.onnx import OnnxBackend
from fuseq.program import Program

RATE, FIRST_SEED = 3e-4, 1_000
FREEZE_ACTIVATIONS, FREEZE_ALL = 0.2, 0.6


@dataclass(frozen=True)
class Prepared:
    """A network in training.

    Attributes:
        module: fake-quantized, in train mode, observing.
        freeze_activations: stops the observers of activations.
        freeze_all: stops those of weights too.
        deploy: gives what ships, from the network as trained: a function of a batch.
    """

    module: nn.Module
    freeze_activations: Callable[[], None]
    freeze_all: Callable[[], None]
    deploy: Callable[[], Callable[[Tensor], Tensor]]


class Fused(nn.Module):
    """The fused topology as plain layers: what other toolkits and plain float training take."""

    def __init__(self, program: Program) -> None:
        """Take over the weights of the fused program."""
        super().__init__()
        nodes = [n for n in program.graph.nodes if ops.name_of(program, n) == "conv2d"]
        first, *middle, last = [copy.deepcopy(program.get(node)) for node in nodes]
        self.stem, self.head = first, last
        self.convs, self.shuffle = nn.ModuleList(middle), nn.PixelShuffle(3)
        self.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, 3, H, W]` to `[N, 3, 3H, 3W]`."""
        first = y = self.stem(x)
        for conv in self.convs:
            y = torch.relu(conv(y))
        result: Tensor = self.shuffle(self.head(y + first))
        return result


def tune(
    model: nn.Module, seed: int, steps: int, before_step: Callable[[int], None] = lambda step: None
) -> None:
    """Train in place: L1, Adam at 3e-4 with a cosine down to 0.

    Args:
        model: in train mode.
        seed: of the data.
        steps: number of batches.
        before_step: called with the number of each step.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step, (low, high) in enumerate(
        itertools.islice(sr_student.batches(FIRST_SEED + seed), steps)
    ):
        before_step(step)
        optimizer.zero_grad()
        F.l1_loss(model(low), high).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def train(prepared: Prepared, seed: int, steps: int) -> None:
    """Train in place through the three stages, and leave all grids frozen."""

    def before_step(step: int) -> None:
        if step == int(FREEZE_ACTIVATIONS * steps):
            prepared.freeze_activations()
        if step == int(FREEZE_ALL * steps):
            prepared.freeze_all()

    tune(prepared.module, seed, steps, before_step)
    prepared.freeze_all()


def ours(model: nn.Module | Program, **options: Any) -> Prepared:
    """`fuseq.qat` on the multi-branch network; `options` are those of `prepare`."""
    images = sr_student.calibration()
    qat = fuseq.qat.prepare(model, images[0], calibration=images, **options)
    return in_stages(qat, lambda: deployed(fuseq.qat.finalize(qat)))


def branches_apart(model: nn.Module) -> Prepared:
    """`fuseq.qat` on the branches, which are fused and calibrated anew after training."""
    images = sr_student.calibration()
    qat = fuseq.qat.prepare(
        model, images[0], calibration=images, passes="recalibrate-bn,fold-bn", unfused=True
    )
    return in_stages(qat, lambda: deployed(ptq(fuseq.fuse(fuseq.qat.float_program(qat)))))


def in_stages(
    qat: fuseq.qat.QatModel, deploy: Callable[[], Callable[[Tensor], Tensor]]
) -> Prepared:
    """The stages of one of our models."""
    return Prepared(
        qat,
        freeze_activations=lambda: qat.stage(observing=False, weight_grids_frozen=False),
        freeze_all=lambda: qat.stage(observing=False, weight_grids_frozen=True),
        deploy=deploy,
    )


def ptq(model: nn.Module | Program, observer: str = "minmax") -> Program:
    """Fused and quantized after training."""
    images = sr_student.calibration()
    return fuseq.quantize(model, images[0], calibration=images, observer=observer)


def deployed(program: Program) -> Callable[[Tensor], Tensor]:
    """A quantized program's ONNX file in ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        fuseq.lower(program, backend="onnx", out=out, check=False)
        runner = OnnxBackend().runner(out / "model.int8.qdq.onnx")
    return lambda x: torch.from_numpy(runner(x.numpy())[0])
