"""TFLite files: operators, conversion, and latency under XNNPACK against other ways to make them.

    python -m benchmarks.peers.install litert_torch onnx2tf
    python -m benchmarks.tflite [--rounds 30] [--side 128]

The fused x3 student (examples/sisr_x3) and QATIE (examples/qatie) go through fuseq and, where they
are installed, through litert-torch with AI Edge Quantizer and through onnx2tf. All start from the
same module and the same eight images and end with an int8 file; "s" is the CPU time of that. Our
writer makes two more files of QATIE, which show what its concats cost:

    edges        a requantize at each edge of a concat; fuseq writes parts that only a concat reads
                 onto its grid
    merged       one scale for all that a concat reads, as converters from a float graph have

Files are run in turn, in an order that moves on each round, by LiteRT with XNNPACK on one thread,
and compared in CPU time: the ratio is the median over rounds of a run to the run of the same round,
with its 95 % interval. This machine is not a phone: the ratios are.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import Tensor, nn

import fuseq
from benchmarks import sr_student
from benchmarks.peers.toolkits import ROOT, TOOLKITS, Toolkit
from benchmarks.qat_runs import fused_student
from benchmarks.sr_student import say
from fuseq import ops
from fuseq.backends.tflite import TfliteBackend
from fuseq.backends.tflite.file import operators, unpacked
from fuseq.latency import median_interval
from fuseq.pass_spec import parse_passes
from fuseq.program import Program
from fuseq.quant.profile import Profile
from fuseq.rewrite import Pipeline

OTHERS = ("litert_torch_route", "onnx2tf_route")
COUNTED = ("TRANSPOSE", "QUANTIZE", "DEQUANTIZE")

PROFILE = TfliteBackend.profile
UNTIED = replace(PROFILE, tied_inputs=frozenset())
"""With this `legalize` leaves the inputs of a concat alone; `quantize` then merges their scales."""
EDGES = replace(
    PROFILE, absorbed={op: by for op, by in PROFILE.absorbed.items() if op != "requantize"}
)
"""With this no operator writes onto the grid of a concat."""


@dataclass(frozen=True)
class File:
    """An int8 file, and the CPU seconds from module to file."""

    path: Path
    seconds: float


def written(quantized: Callable[[], Program], out: Path) -> File:
    """What our writer makes of a program, whose making counts too."""
    out.mkdir()
    started = time.process_time()
    TfliteBackend().lower(quantized(), out)
    return File(out / "model.int8.tflite", time.process_time() - started)


def through(toolkit: Toolkit, model: nn.Module, images: list[Tensor], out: Path) -> File:
    """What a toolkit makes of a module, in its own environment."""
    out.mkdir()
    torch.export.save(torch.export.export(model.eval(), (images[0],)), out / "network.pt2")
    np.save(out / "calibration.npy", torch.cat(images).numpy())
    command = [toolkit.python, "-m", "benchmarks.peers.convert", toolkit.module, str(out)]
    # Its packages are not ours: what PYTHONPATH adds here must not reach it.
    own = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=own).stdout
    found = json.loads(printed)
    return File(Path(found["file"]), found["seconds"])


def latencies(files: Mapping[str, Path], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each file in each round, all taking turns."""
    interpreters = {}
    for name, file in files.items():
        interpreter = Interpreter(str(file), num_threads=1)
        interpreter.allocate_tensors()
        for spec in interpreter.get_input_details():
            random = np.random.default_rng(0).integers(-128, 128, spec["shape"])
            interpreter.set_tensor(spec["index"], random.astype(spec["dtype"]))
        interpreter.invoke()
        interpreters[name] = interpreter
    found: dict[str, list[float]] = {name: [] for name in files}
    names = list(files)
    for turn in range(rounds):
        for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
            interpreter = interpreters[name]
            started = time.process_time()
            interpreter.invoke()
            found[name].append(time.process_time() - started)
    return found


def rows(files: Mapping[str, File], rounds: int) -> list[str]:
    """Table lines; the first file is what the others are compared with."""
    found = latencies({name: file.path for name, file in files.items()}, rounds)
    base = found[next(iter(files))]
    lines = []
    for name, file in files.items():
        ratios = [a / b for a, b in zip(found[name], base, strict=True)]
        middle, low, high = statistics.median(ratios), *median_interval(ratios)
        codes = Counter(operators(unpacked(file.path.read_bytes())))
        cells = [
            name,
            str(codes.total()),
            *(str(codes[code]) for code in COUNTED),
            f"{file.path.stat().st_size / 1000:.0f}",
            f"{file.seconds:.1f}",
            f"{1000 * statistics.median(found[name]):.1f}",
            f"{middle:.2f}",
            f"{low:.2f} to {high:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def student(out: Path, peers: Iterable[Toolkit], images: list[Tensor]) -> dict[str, File]:
    """Files of the x3 student; all are given it fused."""
    branches = sr_student.example("model").get_model()
    model = fused_student(fuseq.fuse(fuseq.capture(branches, images[0], dynamic=False)))

    def quantized() -> Program:
        program = fuseq.capture(model, images[0], dynamic=False)
        return fuseq.quantize(program, target="tflite", calibration=images)

    files = {"fuseq": written(quantized, out / "student")}
    for toolkit in peers:
        say(f"x3 student, {toolkit.label}")
        files[toolkit.label] = through(toolkit, model, images, out / f"student-{toolkit.label}")
    return files


def qatie(out: Path, peers: Iterable[Toolkit], images: list[Tensor]) -> dict[str, File]:
    """Files of QATIE as different converters write them, the first as fuseq does."""
    model = importlib.import_module("examples.qatie.model").get_model()
    forms = {"fuseq": (PROFILE, PROFILE), "edges": (PROFILE, EDGES), "merged": (UNTIED, PROFILE)}
    files = {}

    def quantized(legalized: Profile, ranged: Profile) -> Program:
        program = fuseq.capture(model, images[0], dynamic=False)
        program = Pipeline(parse_passes("fuse-affine,legalize", profile=legalized)).run(program)
        if legalized is UNTIED:
            requantize_tanh(program)
        steps = parse_passes("quantize", profile=ranged, calibration=images)
        return Pipeline(steps).run(program)

    for form, profiles in forms.items():
        say(name := f"QATIE, {form}")
        files[name] = written(functools.partial(quantized, *profiles), out / name)
    for toolkit in peers:
        say(name := f"QATIE, {toolkit.label}")
        files[name] = through(toolkit, model, images, out / name)
    return files


def requantize_tanh(program: Program) -> None:
    """A tanh keeps the grid that its kernel has: it is moved to that of a concat, in place."""
    for node in list(program.graph.nodes):
        for operand in node.all_input_nodes:
            names = (ops.name_of(program, node), ops.name_of(program, operand))
            if names == ("concat", "tanh"):
                with program.graph.inserting_before(node):
                    edge = program.graph.call_function(ops.requantize, (operand,))
                edge.meta = dict(operand.meta)
                node.replace_input_with(operand, edge)
    program.clean()


def frames(side: int) -> list[Tensor]:
    """Eight dead-leaves images `[1, 3, side, side]` in 0..1."""
    data = sr_student.example("data")
    return [
        torch.from_numpy(data.images.to_planes(data.dead_leaves(seed, side)))[None]
        for seed in range(70_000, 70_008)
    ]


def import_seconds() -> float:
    """Seconds that importing the backend takes after torch, in a fresh process; best of five."""
    code = (
        "import time, torch, fuseq; t = time.perf_counter(); import fuseq.backends.tflite.emit, "
        "fuseq.backends.tflite.runner; print(time.perf_counter() - t)"
    )
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(5)]
    return min(float(run.stdout) for run in runs)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--side", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    peers = [toolkit for toolkit in TOOLKITS if toolkit.module in OTHERS and toolkit.installed]
    images = frames(options.side)
    print(f"Importing the backend after torch and fuseq: {import_seconds():.2f} s\n")
    print(f"| file | operators | {' | '.join(COUNTED)} | kB | s | ms | ratio | 95 % |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        print("\n".join(rows(student(Path(folder), peers, images), options.rounds)))
        print("\n".join(rows(qatie(Path(folder), peers, images), options.rounds)))


if __name__ == "__main__":
    main()
