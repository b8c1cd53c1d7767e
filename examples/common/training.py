"""The loop that every example trains with, in one process or in those that torchrun starts.

Adam in one cycle of the learning rate, gradients cut to a length of 1. Each rank draws batches of
its own, so two ranks see twice as many images in as many steps.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fuseq.qat import Curriculum

Batches = Iterator[tuple[Tensor, Tensor]]
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Of a network, what it is given, and what it should make of it."""


def train(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    steps: int,
    rate: float,
    curriculum: Curriculum | None = None,
    batch_statistics: bool = True,
) -> None:
    """Train a network in place, and leave it in evaluation mode.

    Args:
        model: To be trained; prepared for INT8 if there is a curriculum.
        batches: Endless.
        loss: What to minimize.
        steps: Number of batches.
        rate: Highest learning rate.
        curriculum: Its stages are counted in steps.
        batch_statistics: Batch norms have the statistics of each batch, else those of evaluation.
    """
    model.train(batch_statistics)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    started, losses = time.monotonic(), []
    for step, (given, wanted) in enumerate(islice(batches, steps), 1):
        if curriculum:
            curriculum.step(step - 1)
        value = loss(model, given, wanted)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if curriculum:
            curriculum.clip_weights()
        losses.append(value.item())
        if step % 100 == 0 or step == steps:
            stage = f"  {curriculum.stage.name}" if curriculum else ""
            seconds = time.monotonic() - started
            say(f"step {step}/{steps}{stage}  loss {np.mean(losses):.5f}  {seconds:.0f} s")
            losses.clear()
    model.eval()


def train_in_stages(
    student: nn.Module, batches: Batches, loss: Loss, steps: int, rate: float
) -> None:
    """Train a prepared network: a fifth to observe, two to tune, the rest with frozen grids.

    Args:
        student: Prepared for INT8, or a wrapper of such a network.
        batches: Endless.
        loss: What to minimize.
        steps: Number of batches in all.
        rate: Highest learning rate.
    """
    fifth = steps // 5
    curriculum = Curriculum(student, observe=fifth, tune=2 * fifth, freeze=steps - 3 * fifth)
    train(student, batches, loss, steps, rate, curriculum)


@torch.no_grad()
def recompute_statistics(model: nn.Module, batches: Batches) -> None:
    """Replace the running statistics, in place, by the average over 64 batches.

    The running ones are an exponential average that still remembers older weights.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    for given, _ in islice(batches, 64):
        model(given)
    model.eval()


@contextmanager
def joined() -> Iterator[int]:
    """Join the ranks that torchrun started, and give the own one; 0 where there are no others."""
    if "RANK" not in os.environ:
        yield 0
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def parallel(model: nn.Module) -> nn.Module:
    """Let all ranks train a network together, if there are several."""
    return DistributedDataParallel(model) if dist.is_initialized() else model


def say(message: str) -> None:
    """Print a line, on the first rank only."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(message, flush=True)


def parser(description: str, steps: int, tuning_steps: int) -> argparse.ArgumentParser:
    """Create the options that every example has; the numbers of steps are defaults."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--weights", type=Path, help="start from these instead of training them")
    options.add_argument("--steps", type=int, default=steps, help="of training in float")
    options.add_argument("--tuning-steps", type=int, default=tuning_steps, help="of QAT")
    options.add_argument("--backends", nargs="+", default=["tflite", "onnx", "qnn"])
    options.add_argument("--images", type=int, default=256, help="how many are held in memory")
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--out", type=Path, required=True, help="folder of what is written")
    return options
