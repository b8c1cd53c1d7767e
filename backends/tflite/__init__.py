"""The `tflite` backend: NHWC integer files for LiteRT."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fuseq.backend import Artifact, Backend, Refusal, Runner, Tool
from fuseq.program import Program
from fuseq.quant.grid import Grid
from fuseq.quant.profile import Profile

_RELU = frozenset({"conv2d", "conv_transpose2d", "linear", "add", "sub", "mul"})
_FREE = _RELU | frozenset("mean relu clamp leaky_relu prelu hardswish gelu rsqrt matmul".split())
"""Operators that write onto any grid."""


@dataclass(frozen=True)
class TfliteBackend(Backend):
    """Writes TFLite.

    Attributes:
        io: "int8", "uint8" or "float": dtype of the inputs and outputs.
        layout: "nhwc" or "nchw": of images that go in and come out; inside it is NHWC.
        resizable: leave height and width of the inputs open.
    """

    name: ClassVar[str] = "tflite"
    device: ClassVar[str] = "the CPU of a phone"
    pipeline: ClassVar[str] = "fuse-affine,legalize,quantize"
    profile: ClassVar[Profile] = Profile(
        name="tflite",
        arithmetic="xnnpack",
        activation="int8",
        wide="int16",
        symmetric=frozenset({"int16"}),
        one_dtype=True,
        integer=_FREE | {"sigmoid", "tanh", "softmax"},
        same_grid=frozenset(
            "max_pool avg_pool pixel_shuffle pixel_unshuffle reshape permute unsqueeze slice pad "
            "interpolate interpolate_nearest".split()
        ),
        tied_inputs=frozenset({"concat"}),
        absorbed={"relu": _RELU, "clamp": _RELU, "requantize": _FREE},
        fixed={
            "tanh": {"int8": (1 / 128, 0), "int16": (1 / 32768, 0)},
            "sigmoid": {"int8": (1 / 256, -128), "int16": (1 / 32768, 0)},
            "softmax": {"int8": (1 / 256, -128), "int16": (1 / 32768, 0)},
        },
        decompose=frozenset({"silu", "hardsigmoid", "instance_norm", "layer_norm"}),
        channel_block=16,
    )

    io: str = "int8"
    layout: str = "nhwc"
    resizable: bool = False

    def __post_init__(self) -> None:
        """Check the options."""
        self.require_choice("io", ("int8", "uint8", "float"))
        self.require_choice("layout", ("nhwc", "nchw"))

    def refusals(self, program: Program) -> list[Refusal]:
        """Nodes that no operator of the format computes as the program does."""
        from fuseq.backends.tflite.refusals import refusals

        return refusals(program, self.resizable)

    def lower(self, program: Program, out: Path) -> list[Artifact]:
        """`model.fp32.tflite`, and `model.int8.tflite` if the program is quantized."""
        from fuseq.backends.tflite.emit import to_tflite
        from fuseq.backends.tflite.verifier import require_valid

        plain = program.clone()
        plain.quantization = None
        forms = [("model.fp32.tflite", "float", plain)]
        if program.quantization is not None:
            forms.append(("model.int8.tflite", "int8", program))
        for path, _, form in forms:
            data = to_tflite(form, self.interface_grid, self.layout, self.resizable)
            require_valid(data, path)
            (out / path).write_bytes(data)
        return [Artifact(path, kind) for path, kind, _ in forms]

    def runner(self, file: Path) -> Runner:
        """LiteRT on the CPU, with XNNPACK."""
        from fuseq.backends.tflite.runner import LiteRtRunner

        return LiteRtRunner(file)

    def runners(self, file: Path) -> Mapping[str, Runner]:
        """Both kernel sets of LiteRT."""
        from fuseq.backends.tflite.runner import LiteRtRunner

        return {"xnnpack": LiteRtRunner(file), "tflite-ref": LiteRtRunner(file, reference=True)}

    @property
    def channels_last(self) -> bool:
        """As the option `layout` says."""
        return self.layout == "nhwc"

    @property
    def fixed_size(self) -> bool:
        """As the option `resizable` says."""
        return not self.resizable

    def interface_grid(self, grid: Grid) -> Grid | None:
        """As the option `io` says; values of 16 bits stay as they are."""
        if self.io == "float":
            return None
        return grid.shifted_to(self.io) if grid.dtype == "int8" else grid

    def doctor(self) -> list[Tool]:
        """The version of LiteRT."""
        try:
            found = importlib.metadata.version("ai-edge-litert")
        except importlib.metadata.PackageNotFoundError:
            return [Tool("ai-edge-litert", "", False, "pip install 'fuseq[tflite]'")]
        return [Tool("ai-edge-litert", found, True, "writes and runs the files")]
