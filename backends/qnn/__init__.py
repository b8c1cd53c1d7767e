"""The `qnn` backend: Snapdragon's HTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from fuseq.backend import Artifact, Backend, Refusal, Runner, Tool
from fuseq.backends.qnn.chips import CHIPS, Chip, chip
from fuseq.backends.qnn.families import family_refusals, profile_for
from fuseq.backends.qnn.host import require_emulator
from fuseq.backends.qnn.lint.meanings import MEANINGS
from fuseq.equivalence.result import Check, Divergence
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
        chips: names of chips to compile for, which takes `onnxruntime-qnn`; none by default.
    """

    name: ClassVar[str] = "qnn"
    device: ClassVar[str] = "the HTP of a Snapdragon chip"
    pipeline: ClassVar[str] = "fuse-affine,legalize,quantize"
    profile: ClassVar[Profile] = Profile(
        name="qnn",
        arithmetic="htp",
        activation="uint8",
        wide="uint16",
        integer=_LAYERS
        | frozenset(
            "add sub mul div mean avg_pool relu clamp leaky_relu prelu hardsigmoid gelu "
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
            "requantize": _LAYERS | {"relu", "clamp", "leaky_relu", "prelu"},
        },
        fixed={
            "tanh": {"uint8": (1 / 128, 128), "uint16": (1 / 32768, 32768)},
            "sigmoid": _UP_TO_ONE,
            "hardsigmoid": _UP_TO_ONE,
            "softmax": _UP_TO_ONE,
        },
        decompose=frozenset({"silu", "hardswish", "instance_norm"}),
        per_channel_groups=False,
        channel_block=16,
    )

    codes: ClassVar[Mapping[str, str]] = {
        code: f"{found}. It would {would}." for code, (found, would) in MEANINGS.items()
    }
    known_chips: ClassVar[Mapping[str, Mapping[str, str | int]]] = {
        name: {what: fact for what, fact in asdict(each).items() if what != "name"}
        for name, each in CHIPS.items()
    }

    io: str = "uint8"
    layout: str = "nhwc"
    chips: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the options."""
        self.require_choice("io", ("uint8", "float"))
        self.require_choice("layout", ("nhwc", "nchw"))
        object.__setattr__(self, "profile", profile_for(self._chips(), self.profile))

    def refusals(self, program: Program) -> list[Refusal]:
        """What HTP would compute wrongly, in float, or not at all."""
        from fuseq.backends.qnn.lint import refusals

        if self.chips:
            require_emulator()  # before calibration takes its time
        return [*refusals(program), *family_refusals(program, self._chips())]

    def lower(self, program: Program, out: Path) -> list[Artifact]:
        """`model.float.onnx`; of a quantized program `model.qdq.onnx` and the encodings too.

        For chips, a directory each with its context, and one `model.dlc`.
        """
        from fuseq.backends.qnn.chip_files import write_for_chips
        from fuseq.backends.qnn.files import QDQ

        files = self._write(program, out)
        if not self.chips or program.quantization is None:
            return files
        return [*files, *write_for_chips(out / QDQ, self._chips())]

    def checks(self, program: Program, folder: Path) -> list[tuple[Check, Divergence | None]]:
        """What the emulators of the chips compute, op by op."""
        if not self.chips:
            return []
        from fuseq.backends.qnn.chip_checks import chip_checks
        from fuseq.backends.qnn.files import QDQ

        def write(patch: Program, place: Path) -> Path:
            self._write(patch, place)
            return place / QDQ

        return chip_checks(program, folder, self._chips(), write)

    def _chips(self) -> list[Chip]:
        return [chip(name) for name in self.chips]

    def _write(self, program: Program, out: Path) -> list[Artifact]:
        from fuseq.backends.qnn.files import write_files

        return write_files(program, out, integer_io=self.io == "uint8", layout=self.layout)

    def runner(self, file: Path) -> Runner:
        """ONNX Runtime's float kernels on the CPU: what the file says, not what HTP makes of it."""
        from fuseq.backends.qnn.runner import EmittedRunner

        return EmittedRunner(file)

    def doctor(self) -> list[Tool]:
        """The emulator, if there is one."""
        from fuseq.backends.qnn.probe import doctor_lines

        return doctor_lines()

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
