"""`fuseq doctor`: whether the HTP emulator is there and works."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fuseq.backend import Tool
from fuseq.backends.qnn.chips import CHIPS
from fuseq.backends.qnn.emulator import compile_context, run
from fuseq.backends.qnn.host import (
    EMULATED,
    LICENCE,
    WHEEL,
    glibc_version,
    host_problem,
    wheel_version,
)
from fuseq.errors import FuseqError

PROBE_CHIP = CHIPS["sm8750"]
_TIMEOUT = 60.0


def doctor_lines() -> list[Tool]:
    """The wheel and its licence, the host, and a convolution compiled and run."""
    version, problem = wheel_version(), host_problem()
    optional = f"optional: pip install 'fuseq[qnn]'; {LICENCE}"
    lines = [
        Tool(WHEEL, version or "", version is not None, LICENCE if version else optional),
        Tool(
            "HTP host",
            f"glibc {'.'.join(map(str, glibc_version()))}" if glibc_version() else "",
            problem is None,
            problem or "files for HTP are compiled and emulated here",
        ),
    ]
    if version is None or problem:
        return lines
    try:
        probe_emulator()
    except FuseqError as error:
        return [*lines, Tool("HTP emulator", "", False, f"{error.what} ({error.code})")]
    return [*lines, Tool("HTP emulator", version, True, f"compiles and runs; {EMULATED}")]


def probe_emulator() -> None:
    """Compile one small convolution, run its context, and compare with its own sums.

    Raises:
        FuseqError: FQ304 for a wrong result; otherwise what compiling and running raise.
    """
    with tempfile.TemporaryDirectory(prefix="fuseq.probe.") as folder:
        model = Path(folder) / "probe.onnx"
        onnx.save(_convolution(), str(model))
        compiled = compile_context(model, PROBE_CHIP, Path(folder) / "out", timeout=_TIMEOUT)
        x = np.arange(32, dtype=np.uint8).reshape(1, 2, 4, 4)
        found = run(compiled.context, PROBE_CHIP, {"x": x}, timeout=_TIMEOUT)["y"]
    expected = x.astype(int).sum(1, keepdims=True)
    if np.abs(found.astype(int) - expected).max() > 1:
        raise FuseqError(
            "FQ304",
            "the HTP emulator computes a sum of two channels wrongly",
            fix="install the version of onnxruntime-qnn that constraints.txt names",
        )


def _convolution() -> onnx.ModelProto:
    """A sum of two channels: weights of one, scales of one."""
    one = np.float32(1)
    constants = {
        "one": one,
        "zero": np.uint8(0),
        "w": np.full((1, 2, 1, 1), 100, np.int8),
        "w_scale": np.full(1, 0.01, np.float32),
        "w_zero": np.zeros(1, np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "one", "zero"], ["x_real"], "x_dequantize"),
        helper.make_node(
            "DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_real"], "w_dequantize", axis=0
        ),
        helper.make_node("Conv", ["x_real", "w_real"], ["y_real"], "sum"),
        helper.make_node("QuantizeLinear", ["y_real", "one", "zero"], ["y"], "y_quantize"),
    ]
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 2, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 1, 4, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
