"""What every toolkit is given: one trained network, images, a recipe. Needs torch and numpy only.

A toolkit is a module of this package that runs in an environment of its own, so nothing here
imports fuseq. It has some of these functions, whose first argument stays as it is:

    ptq(model, calibration, out) -> Deployed       quantized after training
    qat(model, calibration, out) -> Prepared       quantization-aware training
    fused(model, example, out) -> Deployed         a float network with branches, as it deploys it

What ships is a file where the toolkit writes one, and a function of a batch where it does not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Run = Callable[[Tensor], Tensor]
Batches = Iterator[tuple[Tensor, Tensor]]
Deployed = Path | Run
"""A file `*.onnx` or `*.tflite`, or a function of a batch `[N, 3, H, W]`."""

RATE = 3e-4
FREEZE_ACTIVATIONS, FREEZE_ALL = 0.2, 0.6


@dataclass(frozen=True)
class Prepared:
    """A network in training.

    Attributes:
        module: fake-quantized, in train mode, observing.
        deploy: gives what ships, from the network as trained.
        freeze_activations: stops the observers of activations; nothing where ranges are learned
            to the end, or fixed from the beginning.
        freeze_all: stops those of weights too; likewise.
    """

    module: nn.Module
    deploy: Callable[[], Deployed]
    freeze_activations: Callable[[], None] = lambda: None
    freeze_all: Callable[[], None] = lambda: None


class Student(nn.Module):
    """The x3 super-resolution student, fused: convolutions with ReLU, a skip, a pixel shuffle."""

    def __init__(self, convs: list[nn.Conv2d]) -> None:
        """Take over stem, blocks and head."""
        super().__init__()
        self.stem, self.head = convs[0], convs[-1]
        self.convs = nn.ModuleList(convs[1:-1])
        self.relus = nn.ModuleList(nn.ReLU() for _ in convs[1:-1])
        self.shuffle = nn.PixelShuffle(3)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, 3, H, W]` in 0..1 to `[N, 3, 3H, 3W]`."""
        first = y = self.stem(x)
        for conv, relu in zip(self.convs, self.relus, strict=True):
            y = relu(conv(y))
        result: Tensor = self.shuffle(self.head(y + first))
        return result


def student(blocks: int = 8, seed: int = 0) -> Student:
    """A student with random weights."""
    torch.manual_seed(seed)
    widths = [(3, 32), *[(32, 32)] * blocks, (32, 27)]
    return Student([nn.Conv2d(*width, 3, padding=1) for width in widths]).eval()


@dataclass(frozen=True)
class Bed:
    """A folder with the trained network and all images.

    Attributes:
        folder: `student.pt`, `calibration.npy` and `held_out.npy` (float32 images `[n, 3, 64, 64]`
            in 0..1), `low-SEED.npy` and `high-SEED.npy` (uint8 `[steps, 4, 3, side, side]`).
    """

    folder: Path

    def student(self) -> Student:
        """The network as trained in float, in evaluation mode."""
        model = student()
        model.load_state_dict(torch.load(self.folder / "student.pt", weights_only=True))
        return model.eval()

    def calibration(self) -> list[Tensor]:
        """Images `[1, 3, 64, 64]` of neither training nor evaluation."""
        return [torch.from_numpy(x)[None] for x in np.load(self.folder / "calibration.npy")]

    def held_out(self) -> list[Tensor]:
        """Images `[1, 3, 64, 64]` that PSNR is measured on."""
        return [torch.from_numpy(x)[None] for x in np.load(self.folder / "held_out.npy")]

    def batches(self, seed: int) -> Batches:
        """Low and high patches `[4, 3, side, side]` in 0..1, one pair for each step."""
        low, high = (np.load(self.folder / f"{part}-{seed}.npy") for part in ("low", "high"))
        for pair in zip(low, high, strict=True):
            yield tuple(torch.from_numpy(x).float() / 255 for x in pair)  # type: ignore[misc]


def tune(
    model: nn.Module,
    batches: Batches,
    steps: int,
    before_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Train in place: L1, Adam with a cosine down to 0.

    Args:
        model: in train mode.
        batches: at least as many as steps.
        steps: number of batches.
        before_step: called with the number of each step.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step, (low, high) in enumerate(itertools.islice(batches, steps)):
        before_step(step)
        optimizer.zero_grad()
        F.l1_loss(model(low), high).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def train(prepared: Prepared, batches: Batches, steps: int) -> None:
    """Train in place through the three stages, and leave all grids frozen."""

    def before_step(step: int) -> None:
        if step == int(FREEZE_ACTIVATIONS * steps):
            prepared.freeze_activations()
        if step == int(FREEZE_ALL * steps):
            prepared.freeze_all()

    tune(prepared.module, batches, steps, before_step)
    prepared.freeze_all()
