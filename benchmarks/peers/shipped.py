"""What toolkits ship, judged alike: images it makes, convolutions in it, bytes, time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from benchmarks.latency import session
from fuseq.backends.tflite.file import operators, unpacked

Images = NDArray[np.float32]


def runner(file: Path) -> Callable[[Images], Images]:
    """Runs a file on images `[1, 3, H, W]` in 0..1, whatever layout and type it takes."""
    if file.suffix == ".onnx":
        loaded = session(file)
        name = loaded.get_inputs()[0].name
        return lambda x: np.asarray(loaded.run(None, {name: x})[0])
    interpreter = Interpreter(str(file), num_threads=1)
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    channels_last = given["shape"][-1] == 3

    def run(x: Images) -> Images:
        stored = x.transpose(0, 2, 3, 1) if channels_last else x
        interpreter.set_tensor(given["index"], _quantized(stored, given))
        interpreter.invoke()
        y = _dequantized(interpreter.get_tensor(made["index"]), made)
        return y.transpose(0, 3, 1, 2) if channels_last else y

    return run


def _quantized(x: Images, spec: Any) -> NDArray[Any]:
    if spec["dtype"] == np.float32:
        return x
    scale, zero_point = spec["quantization"]
    limits = np.iinfo(spec["dtype"])
    steps: Images = np.rint(x / scale) + zero_point
    stored: NDArray[Any] = steps.clip(limits.min, limits.max).astype(spec["dtype"])
    return stored


def _dequantized(y: NDArray[Any], spec: Any) -> Images:
    if spec["dtype"] == np.float32:
        return y
    scale, zero_point = spec["quantization"]
    reals: Images = (y.astype(np.float32) - zero_point) * np.float32(scale)
    return reals


def operator_counts(file: Path) -> Counter[str]:
    """Operators of a file, by kind."""
    if file.suffix == ".onnx":
        return Counter(node.op_type for node in onnx.load(file).graph.node)
    return Counter(operators(unpacked(file.read_bytes())))


def convolutions_and_norms(file: Path) -> list[int]:
    """Convolutions in a file, and batch norms. TFLite has none: what is left of one is a MUL."""
    counts = operator_counts(file)
    convolutions = sum(count for kind, count in counts.items() if "CONV" in kind.upper())
    return [convolutions, counts["BatchNormalization"] + counts["MUL"]]


def kilobytes(file: Path) -> float:
    """Size of a file with what it keeps beside itself."""
    return sum(p.stat().st_size for p in (file, Path(f"{file}.data")) if p.exists()) / 1000
