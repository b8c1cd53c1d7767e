"""What integer forms of instance normalization cost: SQNR of QATIE, and time in ONNX Runtime.

    python -m benchmarks.instance_norm

QATIE (examples/qatie) is trained for a few hundred steps on its generated photographs, so that its
channels differ as those of trained networks do, and calibrated on others. SQNR is that of what the
network adds to its input, against the float network, in dB: on held-out photographs, and on the
same with a sixth of their light, whose statistics lie at the low end of every grid. Time is CPU
time of one thread for a frame of 640x360, the least of seven runs.

    float       the runtime's InstanceNormalization, which adds floats in an order of its own
    exact       statistics from exact sums of integers: the `onnx` backend
    decomposed  one 8-bit grid for each step: mean, sub, mul, mean, add, rsqrt, mul, convolution
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import fuseq
from fuseq import ops, plugins
from fuseq.pass_spec import parse_passes
from fuseq.program import Program
from fuseq.user_code import load_function

EXAMPLE = Path(__file__).parents[1] / "examples" / "qatie" / "model.py"
SEEDS = {
    "training": range(64),
    "calibration": range(80_000, 80_016),
    "held out": range(90_000, 90_016),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    example, get_model = load_function(str(EXAMPLE), "get_model")
    photographs = {name: images(example, seeds) for name, seeds in SEEDS.items()}
    model = trained(get_model(), *photographs["training"], options.steps)
    calibration = list(photographs["calibration"][0].chunk(4))
    program = fuseq.fuse(model, calibration[0])
    norms = tuple(n.name for n in program.graph.nodes if ops.name_of(program, n) == "instance_norm")
    target = plugins.load("backends", "onnx")
    profile = target.profile
    forms = {
        "float": (profile, norms),
        "exact": (profile, ()),
        "decomposed": (replace(profile, decompose=profile.decompose | {"instance_norm"}), ()),
    }
    held_out = photographs["held out"][0]
    print(f"{'form':12}{'observer':>10}{'held out':>10}{'dark':>10}{'ms':>10}")
    for observer in ("minmax", "mse"):
        for name, (rules, keep) in forms.items():
            text = f"legalize,quantize{{observer={observer},keep={keep}}}"
            steps = parse_passes(text, profile=rules, calibration=calibration)
            quantized = fuseq.Pipeline(steps).run(program)
            row = [sqnr(model, quantized, x) for x in (held_out, held_out / 6)]
            row.append(milliseconds(target(), quantized))
            print(f"{name:12}{observer:>10}" + "".join(f"{x:10.1f}" for x in row), flush=True)


def images(example: Any, seeds: range) -> tuple[Tensor, Tensor]:
    """Photographs `[N, 3, H, W]` as the phone and as the camera takes them."""
    pairs = [tuple(map(torch.from_numpy, pair)) for pair in example.pairs(seeds)]
    phones, cameras = zip(*pairs, strict=True)
    return torch.stack(phones), torch.stack(cameras)


def trained(model: nn.Module, phones: Tensor, cameras: Tensor, steps: int) -> nn.Module:
    """A network after some steps of Adam on the absolute error."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(steps):
        chosen = torch.randint(len(phones), (4,), generator=generator)
        loss = (model(phones[chosen]) - cameras[chosen]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def sqnr(model: nn.Module, program: Program, x: Tensor) -> float:
    """Power of what a network adds to its input over that of a program's error, in dB."""
    expected = model(x)
    error = expected - program(x)
    return 10 * math.log10(float((expected - x).square().sum() / error.square().sum()))


def milliseconds(backend: Any, program: Program) -> float:
    """CPU time of a frame in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    frame = np.random.default_rng(0).random((1, 3, 360, 640), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        backend.lower(program, Path(folder))
        file = str(Path(folder) / "model.int8.qdq.onnx")
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        feeds = {session.get_inputs()[0].name: frame}
        times = []
        for _ in range(7):
            start = time.process_time()
            session.run(None, feeds)
            times.append(time.process_time() - start)
    return 1000 * min(times)


if __name__ == "__main__":
    main()
