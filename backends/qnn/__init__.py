"""The `qnn` backend: Snapdragon's HTP."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fuseq.backend import Artifact, Backend, Refusal, Runner
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.quant.grid import Grid
from fuseq.quant.profile import Profile

_LAYERS = frozenset({"conv2d", "conv_transpose2d", "linear"})
_UP_TO_ONE = {"uint8": (1 / 256, 0), "uint16": (1 / 65536, 0)}


@dataclass(frozen=True)
class QnnBackend(Backend):
    """Writes QDQ ONNX for HTP, and float ONNX with encodings.

    Attributes:
        io: "uint8" or "float": whether inputs and outputs are integers of their grids.
        layout: "nhwc" or "nchw": of images that go in and come out.
    """

    name: ClassVar[str] = "qnn"
    pipeline: ClassVar[str] = "fuse-affine,legalize,quantize"
    profile: ClassVar[Profile] = Profile(
        name="qnn",
        arithmetic="htp",
        activation="uint8",
        wide="uint16",
        integer=_LAYERS
        | frozenset(
            "add sub mul div mean avg_pool relu clamp leaky_relu prelu hardswish hardsigmoid gelu "
            "sigmoid tanh softmax matmul instance_norm".split()
        ),
        same_grid=frozenset(
            "max_pool pixel_shuffle pixel_unshuffle reshape permute unsqueeze slice pad "
            "interpolate interpolate_nearest".split()
        ),
        tied_inputs=frozenset({"concat"}),
        absorbed={
            "relu": _LAYERS | {"add"},
            "clamp": _LAYERS | {"add"},
            "leaky_relu": _LAYERS,
            "prelu": frozenset({"conv2d", "linear"}),
            "hardswish": frozenset({"conv2d", "linear"}),
        },
        fixed={
            "tanh": {"uint8": (1 / 128, 128), "uint16": (1 / 32768, 32768)},
            "sigmoid": _UP_TO_ONE,
            "hardsigmoid": _UP_TO_ONE,
            "softmax": _UP_TO_ONE,
        },
        decompose=frozenset({"silu", "instance_norm"}),
        per_channel_groups=False,
        channel_block=16,
    )

    io: str = "uint8"
    layout: str = "nhwc"

    def __post_init__(self) -> None:
        """Check the options."""
        for option, known in (("io", ("uint8", "float")), ("layout", ("nhwc", "nchw"))):
            value = getattr(self, option)
            if value not in known:
                fix = f"{option}={' or '.join(known)}"
                raise FuseqError("FQ012", f"unknown {option} '{value}'", fix=fix)

    def refusals(self, program: Program) -> list[Refusal]:
        """What HTP would compute wrongly, in float, or not at all."""
        from fuseq.backends.qnn.lint import refusals

        return refusals(program)

    def lower(self, program: Program, out: Path) -> list[Artifact]:
        """`model.float.onnx`; of a quantized program `model.qdq.onnx` and the encodings too."""
        from fuseq.backends.qnn.files import write_files

        return write_files(program, out, integer_io=self.io == "uint8", layout=self.layout)

    def runner(self, file: Path) -> Runner:
        """ONNX Runtime's float kernels on the CPU: what the file says, not what HTP makes of it."""
        from fuseq.backends.qnn.runner import EmittedRunner

        return EmittedRunner(file)

    @property
    def channels_last(self) -> bool:
        """As the option `layout` says."""
        return self.layout == "nhwc"

    @property
    def fixed_size(self) -> bool:
        """HTP graphs have one size."""
        return True

    def interface_grid(self, grid: Grid) -> Grid | None:
        """As the option `io` says; values of 16 bits stay as they are."""
        return None if self.io == "float" else grid
