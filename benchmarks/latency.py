"""How much faster the lowered files are than the trained network, side by side on this machine.

    python benchmarks/latency.py examples/sisr_x3/model.py --size 128

prints, for ONNX Runtime on one thread, the time of the multi-branch network, of the fused one and
of the int8 one as ratios to the multi-branch one: runs are interleaved, and each ratio is the
median over rounds, so that a machine whose speed drifts compares like with like.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

import fuseq
from fuseq.backends.onnx import OnnxBackend
from fuseq.target import load_target


def main() -> None:
    """Lower the target twice (as it is, and fused), time the three files, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="model.py[:factory]")
    parser.add_argument("--size", type=int, default=128, help="height and width of the input")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()

    target = load_target(options.target)
    calibration = target.function("calibration_data")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        program = fuseq.capture(target.model, target.example_inputs)
        (place / "multi").mkdir()
        OnnxBackend().lower(program, place / "multi")
        fuseq.lower(
            target.model,
            target.example_inputs,
            out=place / "lowered",
            calibration=list(calibration()) if calibration else None,
            check=False,
        )
        files = {
            "multi-branch float": place / "multi" / "model.fp32.onnx",
            "fused float": place / "lowered" / "model.fp32.onnx",
            "fused int8": place / "lowered" / "model.int8.qdq.onnx",
        }
        shape = (*target.example_inputs[0].shape[:2], options.size, options.size)
        x = np.random.default_rng(0).random(shape, dtype=np.float32)
        times = interleaved(
            {name: session(file) for name, file in files.items()}, x, options.rounds
        )
    first = times["multi-branch float"]
    print(
        f"onnxruntime {onnxruntime.__version__}, CPU, 1 thread, input {'x'.join(map(str, shape))}"
    )
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(first, seconds, strict=True))
        print(f"{name:20} {statistics.median(seconds) * 1e3:8.2f} ms   {ratio:5.2f} x as fast")


def session(file: Path) -> onnxruntime.InferenceSession:
    """A session with default optimizations on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def interleaved(
    sessions: dict[str, onnxruntime.InferenceSession], x: np.ndarray, rounds: int
) -> dict[str, list[float]]:
    """CPU seconds of each run, the sessions taking turns, after three runs of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(rounds + 3):
        for name, runner in sessions.items():
            start = time.process_time()
            runner.run(None, {runner.get_inputs()[0].name: x})
            if number >= 3:
                times[name].append(time.process_time() - start)
    return times


if __name__ == "__main__":
    main()
