"""One toolkit at one task, in the environment of that toolkit: prints what it took as JSON.

    PEER/bin/python -m benchmarks.peers.worker TOOLKIT ptq BED OUT
    PEER/bin/python -m benchmarks.peers.worker TOOLKIT qat BED OUT [--seed 0] [--steps 200]
    PEER/bin/python -m benchmarks.peers.worker TOOLKIT step BED OUT [--rounds 15]
    PEER/bin/python -m benchmarks.peers.worker TOOLKIT growth BED OUT
    PEER/bin/python -m benchmarks.peers.worker TOOLKIT fused BED OUT [--network repvgg]

OUT is a folder, made anew, for what the toolkit writes and for outputs on the held-out images.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import json
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.peers.bed import Bed, Deployed, Prepared, Run, student, train
from benchmarks.peers.training_step import Step, timed

DEPTHS = (10, 20, 40, 80)
STAGES = ("observing", "frozen", "all frozen")


def shipped(deployed: Deployed, images: list[Tensor], out: Path) -> dict[str, Any]:
    """The file's name; without a file, outputs for images are kept in its place."""
    if isinstance(deployed, Path):
        return {"file": str(deployed.resolve())}
    return {"outputs": outputs(deployed, images, out / "deployed.npy")}


@torch.no_grad()
def outputs(run: Run, images: list[Tensor], file: Path) -> str:
    """Store the images that a function makes of images."""
    np.save(file, torch.cat([run(image) for image in images]).numpy())
    return str(file.resolve())


def ptq(toolkit: Any, bed: Bed, out: Path) -> dict[str, Any]:
    """Quantize after training; CPU seconds and the memory on top of what imports take."""
    model, calibration = bed.student(), bed.calibration()
    before, started = peak(), time.process_time()
    deployed = toolkit.ptq(model, calibration, out)
    cost = {"seconds": time.process_time() - started, "mebibytes": peak() - before}
    return cost | shipped(deployed, bed.held_out(), out)


def peak() -> float:
    """MiB that this process held at most so far; 0 where there is no /proc."""
    status = Path("/proc/self/status")  # `getrusage` counts what was before exec, too
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def qat(toolkit: Any, bed: Bed, out: Path, seed: int, steps: int) -> dict[str, Any]:
    """Train, and keep what the trained network gives in evaluation beside what ships."""
    prepared = toolkit.qat(bed.student(), bed.calibration(), out)
    train(prepared, bed.batches(seed), steps)
    result = shipped(prepared.deploy(), bed.held_out(), out)
    trained = copy.deepcopy(prepared.module)
    in_evaluation(trained)
    return result | {"trained": outputs(trained, bed.held_out(), out / "trained.npy")}


def in_evaluation(module: nn.Module) -> None:
    """Put a module into evaluation mode, in place; an exported one refuses, and has one mode."""
    with contextlib.suppress(NotImplementedError):
        module.eval()


def step(toolkit: Any, bed: Bed, out: Path, rounds: int) -> dict[str, Any]:
    """CPU seconds of training steps in each stage beside float ones, and MiB that they keep."""
    batch = next(bed.batches(0))
    rows = {"float": Step(bed.student().train(), batch)}
    for stage in STAGES:
        prepared: Prepared = toolkit.qat(bed.student(), bed.calibration(), out)
        rows[stage] = Step(prepared.module, batch)
        rows[stage]()
        if stage != "observing":
            prepared.freeze_activations()
        if stage == "all frozen":
            prepared.freeze_all()
    saved = {name: row.saved_mebibytes() for name, row in rows.items()}
    return {"step": timed(rows, rounds), "saved": saved}


def growth(toolkit: Any, bed: Bed, out: Path) -> dict[str, Any]:
    """CPU seconds of quantization after training for networks of several depths."""
    calibration, seconds = bed.calibration()[:2], {}
    for turn, blocks in enumerate((DEPTHS[0], *DEPTHS)):  # the first one warms up
        folder = out / f"{turn}"
        folder.mkdir()
        started = time.process_time()
        toolkit.ptq(student(blocks), calibration, folder)
        seconds[blocks] = time.process_time() - started
    return {"growth": seconds}


def fused(toolkit: Any, out: Path, network: str) -> dict[str, Any]:
    """Convolutions and batch norms that are left of a network with branches."""
    model = importlib.import_module(f"tests.networks.{network}").small().eval()
    example = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = executed(copy.deepcopy(model), example)
    deployed = toolkit.fused(model, example, out)
    if isinstance(deployed, Path):
        return {"before": before, "file": str(deployed.resolve())}
    return {"before": before, "after": executed(deployed, example)}


@torch.no_grad()
def executed(run: Run, example: Tensor) -> list[int]:
    """Convolutions and batch norms that run for an input."""
    with Counter() as counter:
        run(example)
    return [counter.convolutions, counter.batch_norms]


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what reaches the kernels, however it is spelt above."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.convolutions = self.batch_norms = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count, and run."""
        self.convolutions += "convolution" in func.__name__
        self.batch_norms += "batch_norm" in func.__name__
        return func(*args, **(kwargs or {}))


def main() -> None:
    """Run one task; what toolkits print goes to stderr."""
    parser = argparse.ArgumentParser()
    parser.add_argument("toolkit")
    parser.add_argument("task", choices=("ptq", "qat", "step", "growth", "fused"))
    parser.add_argument("bed", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--network", default="repvgg", help="a module of tests.networks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    warnings.simplefilter("ignore")  # those of other projects
    bed, out = Bed(options.bed), options.out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with contextlib.redirect_stdout(sys.stderr):
        toolkit = importlib.import_module(f"benchmarks.peers.{options.toolkit}")
        tasks: dict[str, Callable[[], dict[str, Any]]] = {
            "ptq": lambda: ptq(toolkit, bed, out),
            "qat": lambda: qat(toolkit, bed, out, options.seed, options.steps),
            "step": lambda: step(toolkit, bed, out, options.rounds),
            "growth": lambda: growth(toolkit, bed, out),
            "fused": lambda: fused(toolkit, out, options.network),
        }
        result = tasks[options.task]()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
