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

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from fuseq.backend import Runner
from fuseq.errors import FuseqError, first_line

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(int16)": "int16",
    "tensor(int64)": "int64",
}


_GIVES_SIZES = frozenset({"Shape", "Size"})
_MOVES = _GIVES_SIZES | frozenset(
    "Identity Reshape Flatten Transpose Squeeze Unsqueeze Expand Concat Split Slice Gather Pad "
    "DepthToSpace SpaceToDepth MaxPool".split()
)


class OrtRunner(Runner):
    """A session on one file."""

    name = "onnx"

    def __init__(self, file: Path) -> None:
        """Load a file.

        Args:
            file: an ONNX model.

        Raises:
            FuseqError: FQ013 if the runtime cannot load it.
        """
        self.runtime = f"onnxruntime {onnxruntime.__version__} CPU"
        self.note = host_note()
        self._file = file
        self._session = _session(file.read_bytes(), file)
        self._exposed: onnxruntime.InferenceSession | None = None
        self.shapes = tuple(
            tuple(size if isinstance(size, int) else None for size in spec.shape)
            for spec in self._session.get_inputs()
        )
        self.dtypes = tuple(_DTYPES[spec.type] for spec in self._session.get_inputs())
        self.quantized = any(n.op_type == "QuantizeLinear" for n in onnx.load(str(file)).graph.node)

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Outputs for inputs."""
        return tuple(self._session.run(None, self._feeds(inputs)))

    def integers(self, *inputs: np.ndarray) -> Mapping[str, np.ndarray]:
        """Integers of every quantized value, by value name (its quantizer's output is exposed)."""
        if self._exposed is None:
            self._exposed = _session(_with_integers(self._file).SerializeToString(), self._file)
        names = [o.name for o in self._exposed.get_outputs() if o.name.endswith(".quantized")]
        # Asked for no output, the runtime gives all.
        values = self._exposed.run(names, self._feeds(inputs)) if names else []
        return {n.removesuffix(".quantized"): v for n, v in zip(names, values, strict=True)}

    def parameters(self) -> Mapping[str, np.ndarray]:
        """Scales, zero points and integers of every DequantizeLinear, by value name."""
        graph = onnx.load(str(self._file)).graph
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        found: dict[str, np.ndarray] = {}
        for node in graph.node:
            if node.op_type != "DequantizeLinear":
                continue
            name = node.output[0].removesuffix(".dequantized")
            found[f"{name}.scale"] = constants[node.input[1]]
            found[f"{name}.zero_point"] = constants[node.input[2]]
            if node.input[0] in constants:
                found[name] = constants[node.input[0]]
        for node in graph.node:
            if node.op_type == "QuantizeLinear":
                name = node.output[0].removesuffix(".quantized")
                found[f"{name}.quantizer.scale"] = constants[node.input[1]]
                found[f"{name}.quantizer.zero_point"] = constants[node.input[2]]
        return found

    def optimized_ops(self) -> tuple[str, ...]:
        """Op types of the graph the runtime really runs, in order."""
        return tuple(node.op_type for node in _optimized(self._file).node)

    def float_ops(self) -> Mapping[str, int]:
        """Op types computed in float after the runtime's own optimizations, with their number.

        What only moves values does not count. Layouts that depend on the machine are left out.
        """
        graph = _optimized(self._file)
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

    def _feeds(self, inputs: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
        return {spec.name: x for spec, x in zip(self._session.get_inputs(), inputs, strict=True)}


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


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not has_exact_u8s8():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def _session(model: bytes, file: Path) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(model, _options(), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise FuseqError(
            "FQ013",
            f"ONNX Runtime cannot load {file.name}: {first_line(error)}",
            where=str(file.name),
            fix="is it an ONNX file, and written by this version?",
        ) from error


def _optimized(file: Path) -> onnx.GraphProto:
    options = _options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(target)
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return onnx.load(str(target)).graph


def _with_integers(file: Path) -> onnx.ModelProto:
    model = onnx.load(str(file))
    already = {value.name for value in (*model.graph.output, *model.graph.input)}
    zero_points = {t.name: t.data_type for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.output[0] not in already:
            dtype = zero_points[node.input[2]]
            model.graph.output.append(helper.make_tensor_value_info(node.output[0], dtype, None))
    return model
