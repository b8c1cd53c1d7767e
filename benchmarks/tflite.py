"""TFLite files: operators, conversion, and latency under XNNPACK against other ways to make them.

    python -m benchmarks.tflite [--peer PEER/bin/python] [--rounds 30] [--side 128]

The x3 student (examples/sisr_x3) goes through fuseq and, if the Python of an environment with
litert-torch and ai-edge-quantizer is given, through those. QATIE (examples/qatie) is written four
times, all by our writer:

    fuseq        parts that only a concat reads are written onto its grid, others requantized
    edges        a requantize at each edge of a concat
    merged       one scale for all that a concat reads, as converters from a float graph have
    TF-style     the same, and each instance norm between two TRANSPOSE, its weight and bias a MUL
                 and an ADD: a model of the file that litert-torch writes for this network (ten
                 TRANSPOSE around five norms; the paper's own file has eleven), not that file

Files are run in turn, in an order that moves on each round, by LiteRT with XNNPACK on one thread,
and compared in CPU time: the ratio is the median over rounds of a run to the run of the same round,
with its 95 % interval. This machine is not a phone: the ratios are.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import Tensor, nn

import fuseq
from benchmarks import sr_student
from benchmarks.peers.bed import Student
from benchmarks.qat_runs import fused_student
from benchmarks.sr_student import say
from fuseq import ops
from fuseq.backends.tflite import TfliteBackend
from fuseq.backends.tflite.file import operators, unpacked
from fuseq.latency import median_interval
from fuseq.pass_spec import parse_passes
from fuseq.program import Program
from fuseq.rewrite import Pipeline

ROOT = Path(__file__).parents[1]


PROFILE = TfliteBackend.profile
UNTIED = replace(PROFILE, tied_inputs=frozenset())
"""With this `legalize` leaves the inputs of a concat alone; `quantize` then merges their scales."""
EDGES = replace(
    PROFILE, absorbed={op: by for op, by in PROFILE.absorbed.items() if op != "requantize"}
)
"""With this no operator writes onto the grid of a concat."""


class ChannelsFirstNorm(nn.Module):
    """An instance norm as converters leave it that keep its channels in front.

    Stored channels last, the program's `(N, W, C, H)` lies as `(N, C, H, W)`.
    """

    def __init__(self, norm: nn.InstanceNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight = nn.Parameter(norm.weight.detach()[:, None].clone())
        self.bias = nn.Parameter(norm.bias.detach()[:, None].clone())

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `(N, C, H, W)`."""
        x = x.permute(0, 3, 1, 2)
        centered = x - x.mean((1, 3), keepdim=True)
        variance = (centered * centered).mean((1, 3), keepdim=True)
        normed = centered * torch.rsqrt(variance + self.eps)
        return (normed * self.weight + self.bias).permute(0, 2, 3, 1)


def written(program: Program, backend: TfliteBackend, out: Path) -> tuple[Path, float]:
    """An int8 file and the seconds that its translation takes."""
    out.mkdir()
    started = time.perf_counter()
    backend.lower(program, out)
    return out / "model.int8.tflite", time.perf_counter() - started


def through_peer(python: str, fused: Student, data: list[Tensor], out: Path) -> tuple[Path, float]:
    """The student through litert-torch and ai-edge-quantizer."""
    layers: list[Any] = [fused.stem, *fused.convs, fused.head]
    arrays: dict[str, Any] = {"calibration": torch.cat(data).numpy()}
    for index, layer in enumerate(layers):
        arrays |= {f"weight{index}": layer.weight.detach().numpy()}
        arrays |= {f"bias{index}": layer.bias.detach().numpy()}
    np.savez(out / "weights.npz", **arrays)
    script = str(ROOT / "benchmarks" / "litert_torch_route.py")
    command = [python, script, str(out / "weights.npz"), str(out / "peer.tflite")]
    # Its packages are not ours: what PYTHONPATH adds here must not reach it.
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    printed = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=out, env=own
    ).stdout
    return out / "peer.tflite", float(printed.split()[-1])


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


def rows(files: Mapping[str, Path], seconds: Mapping[str, float], rounds: int) -> list[str]:
    """Table lines; the first file is what the others are compared with."""
    found = latencies(files, rounds)
    base = found[next(iter(files))]
    lines = []
    for name, file in files.items():
        ratios = [a / b for a, b in zip(found[name], base, strict=True)]
        middle, low, high = statistics.median(ratios), *median_interval(ratios)
        codes = Counter(operators(unpacked(file.read_bytes())))
        cells = [
            name,
            str(codes.total()),
            *(str(codes[code]) for code in ("TRANSPOSE", "QUANTIZE")),
            f"{file.stat().st_size / 1000:.0f}",
            f"{seconds[name]:.2f}" if name in seconds else "",
            f"{1000 * statistics.median(found[name]):.1f}",
            f"{middle:.2f}",
            f"{low:.2f} to {high:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def student(out: Path, peer: str | None, side: int) -> tuple[dict[str, Path], dict[str, float]]:
    """Files of the x3 student, and what their conversion took."""
    images = [x[:, :, :side, :side] for x in frames(side)]
    model = sr_student.example("model").get_model()
    program = fuseq.quantize(
        fuseq.fuse(fuseq.capture(model, images[0], dynamic=False)), target="tflite",
        calibration=images,
    )  # fmt: skip
    files, seconds = {}, {}
    files["fuseq"], seconds["fuseq"] = written(program, TfliteBackend(), out / "student")
    if peer:
        say("converting through litert-torch")
        fused = fused_student(program)
        route = through_peer(peer, fused, images, out)
        files["litert-torch, ai-edge-quantizer"], seconds["litert-torch, ai-edge-quantizer"] = route
    return files, seconds


def qatie(out: Path, side: int) -> dict[str, Path]:
    """Files of QATIE as different converters write them, the first as fuseq does."""
    module = importlib.import_module("examples.qatie.model")
    images, files = frames(side), {}
    forms = {
        "fuseq": (PROFILE, PROFILE),
        "edges": (PROFILE, EDGES),
        "merged": (UNTIED, PROFILE),
        "TF-style": (UNTIED, PROFILE),
    }
    for name, (legalized, quantized) in forms.items():
        say(f"QATIE, {name}")
        model = module.get_model()
        if name == "TF-style":
            norms = [n for n, m in model.named_modules() if isinstance(m, nn.InstanceNorm2d)]
            for path in norms:
                model.set_submodule(path, ChannelsFirstNorm(model.get_submodule(path)))
        program = fuseq.capture(model, images[0], dynamic=False)
        program = Pipeline(parse_passes("fuse-affine,legalize", profile=legalized)).run(program)
        if legalized is UNTIED:
            requantize_tanh(program)
        steps = parse_passes("quantize", profile=quantized, calibration=images)
        program = Pipeline(steps).run(program)
        files[f"QATIE, {name}"], _ = written(program, TfliteBackend(), out / name)
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
    parser.add_argument("--peer", help="Python of an environment with litert-torch")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--side", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"Importing the backend after torch and fuseq: {import_seconds():.2f} s\n")
    print("| file | operators | TRANSPOSE | QUANTIZE | kB | conversion s | ms | ratio | 95 % |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        files, seconds = student(Path(folder), arguments.peer, arguments.side)
        print("\n".join(rows(files, seconds, arguments.rounds)))
        print("\n".join(rows(qatie(Path(folder), arguments.side), {}, arguments.rounds)))


if __name__ == "__main__":
    main()
