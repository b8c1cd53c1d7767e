"""What 16 bits, and one scale for each weight, give and cost: x3 super-resolution, ONNX Runtime.

    python -m benchmarks.precision

The network is examples/sisr_x3, fused; half of its calibration images calibrate, the others are
measured. SQNR in dB: of the whole, against the float network; and of activations alone, against the
float network with weights that were rounded to the same grids. Time is CPU time of one thread for
one 320x180 image, the median of runs in turn.

Then what the executor's sums of 16-bit integers cost, split into two of float32, as a share of one
sum in float64: CPU time of one thread, the median of runs in turn.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor

import fuseq
from fuseq import plugins
from fuseq.equivalence import fidelity
from fuseq.program import Program
from fuseq.quant.arithmetic.exact_sums import exact_sum
from fuseq.quant.grid import affine_grid
from fuseq.target import load_target

EXAMPLE = Path(__file__).parents[1] / "examples" / "sisr_x3" / "model.py"
CHOICES: dict[str, dict[str, Any]] = {
    "w8a8": {},
    "w8a8, one scale a weight": {"per_channel": False},
    "w8a8, input, skip and output in 16 bits": {"wide": ("x", "stem", "add_40", "head")},
    "w8a16": {"activation": "uint16"},
}
RUNS = 9

CONVOLUTIONS = {
    "16 -> 16, 3x3, 64x64": (16, 16, 64),
    "16 -> 16, 3x3, 360x360": (16, 16, 360),
    "32 -> 32, 3x3, 128x128": (32, 32, 128),
    "64 -> 64, 3x3, 64x64": (64, 64, 64),
    "8 -> 32, 3x3, 128x128": (8, 32, 128),
}
"""Channels in and out, height and width."""


def main() -> None:
    """Print a table."""
    target = load_target(str(EXAMPLE))
    data = target.function("calibration_data")
    assert data is not None
    images = list(data())
    calibration, measured = images[::2], images[1::2]
    program = fuseq.fuse(target.model, target.example_inputs)
    choices = {
        name: fuseq.quantize(program, calibration=calibration, **options)
        for name, options in CHOICES.items()
    }
    times = milliseconds(choices)
    print(f"{'':40}{'SQNR':>8}{'activations':>13}{'ms':>8}")
    for name, quantized in choices.items():
        whole = sqnr(program, quantized, measured)
        activations = sqnr(with_rounded_weights(program, quantized), quantized, measured)
        print(f"{name:40}{whole:8.1f}{activations:13.1f}{times[name]:8.1f}")
    print(f"{'float':40}{'':21}{times['float']:8.1f}")
    print()
    for name, (channels, out, size) in CONVOLUTIONS.items():
        print(f"{name:40}{split_share(channels, out, size):8.2f}")


@torch.no_grad()
def sqnr(reference: Program, program: Program, images: list[Tensor]) -> float:
    """SQNR of a program's outputs, in dB."""
    pairs = [(reference(x).numpy(), program(x).numpy()) for x in images]
    expected, actual = zip(*pairs, strict=True)
    return float(fidelity("sqnr", "", expected, actual).metrics["sqnr_db"])


@torch.no_grad()
def with_rounded_weights(program: Program, quantized: Program) -> Program:
    """A float program whose weights and biases are those of the quantized one."""
    rounded, table = program.clone(), quantized.quantization
    assert table is not None
    for name, parameter in rounded.module.named_parameters():
        parameter.copy_(table.grids[name].dequantize(table.integers[name]))
    return rounded


def milliseconds(programs: Mapping[str, Program]) -> dict[str, float]:
    """CPU time of each quantized file, and of the float file, in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    image = np.random.default_rng(0).random((1, 3, 180, 320), dtype=np.float32)
    sessions = {}
    for name, program in programs.items():
        with tempfile.TemporaryDirectory() as folder:
            plugins.load("backends", "onnx")().lower(program, Path(folder))
            for kind, file in ((name, "model.int8.qdq.onnx"), ("float", "model.fp32.onnx")):
                sessions[kind] = onnxruntime.InferenceSession(
                    Path(folder) / file, options, providers=["CPUExecutionProvider"]
                )
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(RUNS):
        for name, session in sessions.items():
            start = time.process_time()
            session.run(None, {session.get_inputs()[0].name: image})
            times[name].append(1000 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}


@torch.no_grad()
def split_share(channels: int, out: int, size: int) -> float:
    """Time of an exact sum of 16-bit integers over that of the same sum in float64."""
    generator = torch.Generator().manual_seed(0)
    grid = affine_grid(0.0, 1.0, "uint16")
    x = torch.randint(65536, (1, channels, size, size), dtype=torch.int32, generator=generator)
    weight = torch.randint(-60, 61, (out, channels, 3, 3), generator=generator).to(torch.int8)
    product = partial(F.conv2d, padding=1)
    split, wide = [], []
    for _ in range(RUNS):
        start = time.process_time()
        exact_sum(product, x, weight, grid)
        middle = time.process_time()
        product(x.double(), weight.double())
        split.append(middle - start)
        wide.append(time.process_time() - middle)
    return statistics.median(split) / statistics.median(wide)


if __name__ == "__main__":
    main()
