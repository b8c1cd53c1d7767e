"""The `onnx` backend: QDQ for ONNX Runtime, and the fused float model beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import onnx
import onnxruntime
from torch import fx

from fuseq import ops
from fuseq.backend import Artifact, Backend, Refusal, Runner, Tool
from fuseq.backends.onnx.runner import OrtRunner, has_exact_u8s8
from fuseq.backends.onnx.spellings import SPELLINGS
from fuseq.errors import FuseqError, first_line
from fuseq.program import Program
from fuseq.qdq import foreign
from fuseq.qdq.emit import to_onnx
from fuseq.qdq.float_ops import FLOAT_OPS
from fuseq.qdq.graph import DTYPES, serialized
from fuseq.qdq.sized_ops import SIZED_OPS
from fuseq.quant.grid import Grid
from fuseq.quant.profile import Profile

_LAYERS = frozenset({"conv2d", "conv_transpose2d", "linear", "requantize", "constant", "shape"})
OWN_RULES = _LAYERS | FLOAT_OPS.keys() | SIZED_OPS.keys()


@dataclass(frozen=True)
class OnnxBackend(Backend):
    """Writes ONNX.

    Attributes:
        opset: 18 or 21; by default 18, and 21 for grids of 16 bits, which 18 does not have.
        io: "float" inputs and outputs with quantizers inside, or "integer" ones without.
        dynamic: leave open the sizes the program was proved to take.
        simplify: run onnxsim on the float model.
    """

    name: ClassVar[str] = "onnx"
    pipeline: ClassVar[str] = "fuse-affine,legalize,quantize"
    profile: ClassVar[Profile] = Profile(
        name="onnx",
        arithmetic="ort",
        activation="uint8",
        wide="uint16",
        integer=frozenset(
            {"conv2d", "linear", "add", "mul", "mean", "avg_pool", "leaky_relu", "sigmoid"}
        ),
        float_inside=frozenset(
            "relu clamp tanh rsqrt hardsigmoid hardswish sub div prelu interpolate instance_norm "
            "conv_transpose2d".split()
        ),
        same_grid=frozenset(
            "max_pool pixel_shuffle pixel_unshuffle reshape permute unsqueeze slice pad "
            "interpolate_nearest".split()
        ),
        tied_inputs=frozenset({"concat"}),
        absorbed={
            "relu": frozenset({"conv2d", "conv_transpose2d", "linear", "add"}),
            "clamp": frozenset({"conv2d", "conv_transpose2d", "linear", "add"}),
        },
        decompose=frozenset({"silu"}),
        channel_block=16,
    )

    opset: int | None = None
    io: str = "float"
    dynamic: bool = True
    simplify: bool = True

    def __post_init__(self) -> None:
        """Check the options."""
        if self.opset not in (None, 18, 21):
            raise FuseqError("FQ012", f"opset {self.opset} is not supported", fix="18 or 21")
        if self.io not in ("float", "integer"):
            raise FuseqError("FQ012", f"unknown io '{self.io}'", fix="float or integer")

    def refusals(self, program: Program) -> list[Refusal]:
        """Nodes neither our table nor torch's exporter can write."""
        found = []
        for node in program.outputs():
            dtype = str(node.meta["dtype"]).removeprefix("torch.")
            if dtype not in DTYPES:
                reason = f"an output of {dtype}, which the file has no place for"
                found.append(Refusal(node.name, program.source(node), reason, "return y.float()"))
        for node in _wide_nodes(program)[: self.opset == 18]:
            reason = "a grid of 16 bits, which QuantizeLinear has from opset 21 on"
            fix = "-b 'onnx{opset=21}', which is the default here"
            found.append(Refusal(node.name, program.source(node), reason, fix))
        for node in program.graph.nodes:
            name = ops.name_of(program, node)
            if name == "avg_pool" and _hangs_over(node) and program.quantization is not None:
                reason = "ONNX Runtime's integer average pool divides windows over the edge wrongly"
                fix = "count_include_pad=False, or ceil_mode=False"
                found.append(Refusal(node.name, program.source(node), reason, fix))
            if name == "avg_pool" and node.kwargs["divisor_override"] is not None:
                reason = "ONNX has no average pool with a divisor of its own and ceil_mode"
                fix = "ceil_mode=False"
                found.append(Refusal(node.name, program.source(node), reason, fix))
            if name == "adaptive_avg_pool" and self.dynamic and _has_free_size(program):
                reason = "an adaptive pool has no ONNX form while the image size is open"
                fix = "-b 'onnx{dynamic=False}' for the captured size only"
                found.append(Refusal(node.name, program.source(node), reason, fix))
            if name in OWN_RULES or node.op in ("placeholder", "output"):
                continue
            try:
                foreign.export_node(program, node)
            except Exception as error:
                reason = f"{name} has no ONNX form: {first_line(error)}"
                fix = "rewrite it with ops of the vocabulary (docs/vocabulary.md)"
                found.append(Refusal(node.name, program.source(node), reason, fix))
        return found

    def lower(self, program: Program, out: Path) -> list[Artifact]:
        """`model.fp32.onnx`, and `model.int8.qdq.onnx` if the program is quantized."""
        opset = self.opset or (21 if _wide_nodes(program) else 18)
        float_program = program.clone()
        float_program.quantization = None
        model = to_onnx(
            float_program, name="fused", opset=opset, dynamic=self.dynamic, integer_io=False
        )
        (out / "model.fp32.onnx").write_bytes(
            serialized(_simplified(model) if self.simplify else model)
        )
        files = [Artifact("model.fp32.onnx", "float")]
        if program.quantization is not None:
            model = to_onnx(
                program,
                name="quantized",
                opset=opset,
                dynamic=self.dynamic,
                integer_io=self.io == "integer",
                rules=SPELLINGS,
            )
            (out / "model.int8.qdq.onnx").write_bytes(serialized(model))
            files.append(Artifact("model.int8.qdq.onnx", "int8"))
        return files

    def runner(self, file: Path) -> Runner:
        """ONNX Runtime on the CPU."""
        return OrtRunner(file)

    @property
    def fixed_size(self) -> bool:
        """As the option `dynamic` says."""
        return not self.dynamic

    def interface_grid(self, grid: Grid) -> Grid | None:
        """As the option `io` says."""
        return grid if self.io == "integer" else None

    def doctor(self) -> list[Tool]:
        """Versions, and whether this CPU runs int8 exactly."""
        vnni = "exact int8 kernels" if has_exact_u8s8() else "no VNNI: exact kernels are slower"
        return [
            Tool("onnx", onnx.__version__, True, "writes and checks the files"),
            Tool("onnxruntime", onnxruntime.__version__, True, f"runs the checks; {vnni}"),
        ]


def _wide_nodes(program: Program) -> list[fx.Node]:
    grids = program.quantization.grids if program.quantization else {}
    wide = {name for name, grid in grids.items() if grid.dtype == OnnxBackend.profile.wide}
    return [node for node in program.graph.nodes if node.name in wide]


def _has_free_size(program: Program) -> bool:
    return any(dim >= 2 for _, dim in program.origin.dynamic)


def _hangs_over(node: fx.Node) -> bool:
    k: dict[str, Any] = dict(node.kwargs)
    return bool(k["ceil_mode"] and k["count_include_pad"] and any(k["padding"]))


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """Onnxsim's model where it has fewer nodes and passes its own check, else the model itself."""
    try:
        import onnxsim
    except ImportError:
        return model
    simplified, same = onnxsim.simplify(model)
    return simplified if same and len(simplified.graph.node) < len(model.graph.node) else model
