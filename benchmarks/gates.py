"""What `fuse-gates` gains or loses on ONNX Runtime: gates of two convolutions, and of one wide one.

    python -m benchmarks.gates

prints, for each gate and the convolution behind it, time separate / time merged (above 1: merging
helps) in float and in int8 on one thread, beside the figures of the reference study, and the number
of integers in which the merged int8 file differs from our executor (0 is the promise). Both files
take turns and each ratio is that of the shortest runs' CPU times.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import fuseq
from benchmarks.latency import interleaved, session
from fuseq.backends.onnx import OnnxBackend
from fuseq.pass_spec import parse_passes
from fuseq.program import Program


class Gate(nn.Module):
    """Two sibling convolutions, their product, and a convolution that reads it."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        second = case.kernel if case.second_kernel is None else case.second_kernel
        self.a = _conv(case.inputs, case.channels, case.kernel, case.stride)
        self.b = _conv(case.inputs, case.channels, second, case.stride)
        self.next = _conv(case.channels, case.channels, 3, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The next convolution's output, and the concat of both factors if there is a skip."""
        a, b = self.a(x), self.b(x)
        if self.case.kind == "tanh":
            a, b = torch.tanh(a), torch.tanh(b)
        y = self.next(a * (torch.sigmoid(b) if self.case.kind == "glu" else b))
        return (y, torch.cat((a, b), 1)) if self.case.skip else y


@dataclass(frozen=True)
class Case:
    """One gate.

    Attributes:
        name: shown.
        kind: "tanh" (tanh * tanh), "glu" (a * sigmoid(b)) or "product" (a * b).
        inputs: channels of the input.
        channels: of each factor.
        size: height and width of the input.
        kernel: size.
        stride: of both convolutions.
        skip: whether a concat of both factors is an output too.
        second_kernel: kernel size of the second convolution, if it differs.
        reference: ratios of the reference study: float, int8; None where it has none.
    """

    name: str
    kind: str
    inputs: int
    channels: int
    size: int
    kernel: int = 3
    stride: int = 1
    skip: bool = False
    second_kernel: int | None = None
    reference: tuple[float, float] | None = None


CASES = [
    Case("tanh 3->32 s2 with skip", "tanh", 3, 32, 256, 3, 2, True, None, (0.88, 1.10)),
    Case("tanh 32->64 s2 with skip", "tanh", 32, 64, 128, 3, 2, True, None, (0.94, 1.04)),
    Case("tanh 3->32 s2", "tanh", 3, 32, 256, 3, 2, reference=(0.80, 0.98)),
    Case("tanh 32->64 s2", "tanh", 32, 64, 128, 3, 2, reference=(0.94, 0.99)),
    Case("tanh 128->256 s2 with skip", "tanh", 128, 256, 32, 3, 2, True),
    Case("glu 8->8", "glu", 8, 8, 128),
    Case("glu 12->12", "glu", 12, 12, 128),
    Case("glu 16->16", "glu", 16, 16, 128, reference=(0.95, 1.21)),
    Case("glu 24->24", "glu", 24, 24, 128),
    Case("glu 32->32", "glu", 32, 32, 64),
    Case("glu 40->40", "glu", 40, 40, 64),
    Case("glu 64->64", "glu", 64, 64, 64, reference=(0.92, 0.99)),
    Case("glu 64->64 1x1", "glu", 64, 64, 128, 1, reference=(0.81, 0.95)),
    Case("glu 200->200", "glu", 200, 200, 28),
    Case("glu 256->256", "glu", 256, 256, 28, reference=(0.97, 0.98)),
    Case("glu 16->16 3x3 and 1x1", "glu", 16, 16, 128, second_kernel=1),
    Case("product 8->8", "product", 8, 8, 128),
    Case("product 16->12", "product", 16, 12, 128, reference=(1.12, 1.46)),
    Case("product 16->16", "product", 16, 16, 128),
    Case("product 24->24", "product", 24, 24, 128, reference=(1.03, 1.19)),
    Case("product 32->32", "product", 32, 32, 64),
    Case("product 12->12 1x1", "product", 12, 12, 128, 1),
    Case("product 24->24 1x1", "product", 24, 24, 128, 1),
    Case("product 32->32 1x1", "product", 32, 32, 128, 1, reference=(0.76, 0.98)),
    Case("product 64->64 1x1", "product", 64, 64, 64, 1, reference=(0.86, 0.97)),
]


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


def main() -> None:
    """Build, lower, run and time every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    print(f"onnxruntime {onnxruntime.__version__}, CPU, 1 thread; time separate / time merged")
    columns = f"{'float':>7}{'(ref)':>8}{'int8':>7}{'(ref)':>8}  differing"
    print(f"{'gate and next convolution':28}{columns}")
    for case in (c for c in CASES if options.only in c.name):
        floats, integers, differing = measured(case, options.rounds)
        known = [f"({value:.2f})" for value in case.reference or ()] or ["", ""]
        print(
            f"{case.name:28}{floats:7.2f}{known[0]:>8}{integers:7.2f}{known[1]:>8}  {differing}",
            flush=True,
        )


def measured(case: Case, rounds: int) -> tuple[float, float, int]:
    """Ratio in float, ratio in int8, and integers of the merged file that differ from ours."""
    torch.manual_seed(0)
    model = Gate(case).eval()
    batches = [torch.randn(1, case.inputs, case.size, case.size) for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        programs = {
            name: lowered(model, batches, step, place / name)
            for name, step in (("separate", ""), ("merged", "fuse-gates{always=true},"))
        }
        x = batches[0].numpy()
        floats = ratio(place, "model.fp32.onnx", x, rounds)
        grid = programs["merged"].quantization.grids[programs["merged"].inputs()[0].name]  # type: ignore[union-attr]
        integers = ratio(
            place, "model.int8.qdq.onnx", grid.quantize(batches[0]).numpy().astype("uint8"), rounds
        )
        return (
            floats,
            integers,
            differing_integers(programs["merged"], place / "merged", batches[0]),
        )


def lowered(model: nn.Module, batches: list[Tensor], step: str, out: Path) -> Program:
    """Write both files of a model, with one more pass in front of the default ones."""
    backend = OnnxBackend(io="integer")
    passes = f"fuse-affine,{step}legalize,quantize"
    steps = parse_passes(passes, profile=backend.profile, calibration=batches)
    program = fuseq.Pipeline(steps).run(fuseq.capture(model, batches[0]))
    out.mkdir()
    backend.lower(program, out)
    return program


def ratio(place: Path, file: str, x: np.ndarray, rounds: int) -> float:
    """Shortest CPU time of the separate file over that of the merged one."""
    sessions = {name: session(place / name / file) for name in ("separate", "merged")}
    times = interleaved(sessions, x, rounds)
    return min(times["separate"]) / min(times["merged"])


def differing_integers(program: Program, place: Path, x: Tensor) -> int:
    """Integers in which ONNX Runtime differs from the executor, over all values."""
    grid = program.quantization.grids[program.inputs()[0].name]  # type: ignore[union-attr]
    runner = OnnxBackend().runner(place / "model.int8.qdq.onnx")
    actual = runner.integers(grid.quantize(x).numpy().astype("uint8"))
    expected = fuseq.execute(program, (x,)).integers
    assert actual
    return sum(int((expected[name].numpy() != value).sum()) for name, value in actual.items())


if __name__ == "__main__":
    main()
