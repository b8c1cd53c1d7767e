"""Measures toolkits on the bed: raw figures, from which the tables are made.

What takes time on the clock of a table runs alone; what does not, two at a time. PSNR is that of
8-bit images against the originals; a pixel differs if the trained network, in evaluation, and what
ships give another 8-bit value for one of its three colours.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

import fuseq
from benchmarks import sr_student
from benchmarks.latency import interleaved, session
from benchmarks.peers.bed import Bed
from benchmarks.peers.shipped import convolutions_and_norms, kilobytes, runner
from benchmarks.peers.toolkits import TOOLKITS, Toolkit, run
from benchmarks.sr_student import say
from benchmarks.tflite import latencies
from fuseq.backends.onnx import OnnxBackend
from fuseq.backends.tflite import TfliteBackend

NETWORKS = (
    "mobileone",
    "repvgg",
    "diverse_branch",
    "asymmetric",
    "replknet",
    "expandnet",
    "ecbsr",
)
Results = dict[str, Any]
Images = NDArray[np.float32]


@dataclass(frozen=True)
class Bench:
    """The bed, the place for files, and how much is measured."""

    bed: Bed
    out: Path
    seeds: int
    steps: int
    rounds: int

    def task(self, toolkit: Toolkit, task: str, *options: str) -> Results:
        """One task of one toolkit, judged."""
        out = self.out / "-".join((toolkit.module, task, *options[1:2]))
        result = run(toolkit, task, self.bed.folder, out, *options)
        say(f"{toolkit.label}: {task} {' '.join(options[1:2])} {result.get('failed', '')}")
        return result if "failed" in result else judged(result, self.bed)


def judged(result: Results, bed: Bed) -> Results:
    """A result with PSNR, size and structure of what ships, and how it differs from training."""
    if "before" in result:
        if "file" in result:
            result["after"] = convolutions_and_norms(Path(result["file"]))
        return result
    if "file" in result:
        file = Path(result["file"])
        run = runner(file)
        shipped = np.concatenate([run(image.numpy()) for image in bed.held_out()])
        result["kilobytes"] = kilobytes(file)
    elif "outputs" in result:
        shipped = np.load(result["outputs"])
    else:
        return result
    result["psnr"] = psnr(shipped)
    if "trained" in result:
        trained = np.load(result["trained"])
        result["trained_psnr"] = psnr(trained)
        result["differing"] = int(np.count_nonzero(pixels(trained) != pixels(shipped)))
        result["pixels"] = shipped.size
    return result


def psnr(outputs: Images) -> float:
    """PSNR in dB of all held-out images."""
    each = iter(outputs)
    return sr_student.psnr(lambda x: next(each)[None])


def pixels(outputs: Images) -> NDArray[np.uint8]:
    """8-bit values."""
    result: NDArray[np.uint8] = sr_student.example("data").images.to_pixels(outputs)
    return result


def measured(bench: Bench, chosen: Iterable[Toolkit]) -> Results:
    """Figures of toolkits by module and task, and the latency of all files beside each other."""
    toolkits = list(chosen)
    results: Results = {toolkit.module: {} for toolkit in toolkits}
    together: list[tuple[Toolkit, str, tuple[str, ...]]] = []
    for toolkit in toolkits:
        if "qat" in toolkit.tasks:
            runs = [
                ("--seed", str(seed), "--steps", str(bench.steps)) for seed in range(bench.seeds)
            ]
            together += [(toolkit, "qat", options) for options in runs]
        if "fused" in toolkit.tasks:
            together += [(toolkit, "fused", ("--network", name)) for name in NETWORKS]
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda each: bench.task(each[0], each[1], *each[2]), together)
        for (toolkit, task, options), result in zip(together, found, strict=True):
            results[toolkit.module].setdefault(task, {})[options[1]] = result
    for toolkit in toolkits:
        for task in ("ptq", "step", "growth"):
            if task in toolkit.tasks:
                rounds = ("--rounds", str(bench.rounds)) if task == "step" else ()
                results[toolkit.module][task] = bench.task(toolkit, task, *rounds)
    return results


def latency(bench: Bench, model: nn.Module, results: Results) -> Results:
    """CPU seconds of every file on the held-out images' size, by runtime, all taking turns."""
    example = bench.bed.held_out()[0]
    files: dict[str, dict[str, Path]] = {"onnx": {}, "tflite": {}}
    for kind, backend in (("onnx", OnnxBackend()), ("tflite", TfliteBackend())):
        program = fuseq.capture(model, example, dynamic=kind == "onnx")
        # Every converter folds batch norms; what it leaves is branches.
        for form, passes in (("branches", "fold-bn"), ("fused", "fuse-affine")):
            out = bench.out / f"{form}-{kind}"
            out.mkdir(parents=True, exist_ok=True)
            backend.lower(fuseq.fuse(program, passes=passes), out)
            files[kind][form] = out / f"model.fp32.{kind}"
    for toolkit in TOOLKITS:
        result = results.get(toolkit.module, {}).get("ptq", {})
        if "file" in result and toolkit.module not in ("ours_checked", "ours_aided"):
            file = Path(result["file"])
            files[file.suffix[1:]][toolkit.module] = file
    x = example.numpy()
    say("latency")
    sessions = {name: session(file) for name, file in files["onnx"].items()}
    return {
        "onnx": interleaved(sessions, x, 4 * bench.rounds),
        "tflite": latencies(files["tflite"], 4 * bench.rounds),
    }
