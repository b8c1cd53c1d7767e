"""Runs ONNX files on ONNX Runtime's CPU kernels, with its default graph optimizations.

Without VNNI, x86 kernels multiply uint8 by int8 in pairs and saturate the 16-bit partial sums: the
integers are then the host's, not the model's. Where the CPU lacks VNNI the runner asks the runtime
for its exact kernels instead, and says so in its note.
"""

from __future__ import annotations

import platform
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnxruntime
from onnx import TensorProto

from fuseq.qdq.runner import QdqRunner

_GIVES_SIZES = frozenset({"Shape", "Size"})
_MOVES = _GIVES_SIZES | frozenset(
    "Identity Reshape Flatten Transpose Squeeze Unsqueeze Expand Concat Split Slice Gather Pad "
    "DepthToSpace SpaceToDepth MaxPool".split()
)


class OrtRunner(QdqRunner):
    """A session on one file."""

    def __init__(self, file: Path, *, threads: int | None = None) -> None:
        """Load a file.

        Args:
            file: an ONNX model.
            threads: of the session; by default as many as there are cores.

        Raises:
            FuseqError: FQ013 if the runtime cannot load it.
        """
        super().__init__(file, _options(threads), host_note())

    def optimized_ops(self) -> tuple[str, ...]:
        """Op types of the graph the runtime really runs, in order."""
        return tuple(node.op_type for node in _optimized(self.file).node)

    def float_ops(self) -> Mapping[str, int]:
        """Op types computed in float after the runtime's own optimizations, with their number.

        What only moves values does not count. Layouts that depend on the machine are left out.
        """
        graph = _optimized(self.file)
        known = {tensor.name for tensor in graph.initializer}  # constants, and what sizes give
        floats = {v.name for v in graph.input if v.type.tensor_type.elem_type == TensorProto.FLOAT}
        found: Counter[str] = Counter()
        for node in graph.node:
            if node.op_type in _GIVES_SIZES or known.issuperset(node.input):
                known.update(node.output)
                continue
            reads = node.op_type != "QuantizeLinear" and any(i in floats for i in node.input)
            if node.op_type in ("DequantizeLinear", "Cast") or reads:
                floats.update(node.output)
            if reads and node.op_type not in _MOVES:
                found[node.op_type] += 1
        return dict(sorted(found.items()))


def host_note() -> str:
    """What a reader must know of this CPU, or the empty string."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "our model of the runtime is of its x86-64 kernels; others round sums differently"
    return "" if has_exact_u8s8() else "no VNNI on this CPU: exact U8S8 kernels requested"


def has_exact_u8s8() -> bool:
    """Whether this CPU multiplies uint8 by int8 without saturating (VNNI, or not x86)."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    info = Path("/proc/cpuinfo")
    return "vnni" in info.read_text() if info.exists() else False


def _options(threads: int | None = None) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails comes back as an exception
    if threads is not None:
        options.intra_op_num_threads = threads
    if not has_exact_u8s8():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _optimized(file: Path) -> onnx.GraphProto:
    options = _options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(target)
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return onnx.load(str(target)).graph
