"""Runs a context binary on the emulator of the chip that it was compiled for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from fuseq.backend import Runner
from fuseq.backends.qnn import emulator
from fuseq.backends.qnn.chips import CHIPS, Chip
from fuseq.backends.qnn.host import EMULATED, WHEEL, require_emulator
from fuseq.backends.qnn.htp_graph import chip_number
from fuseq.backends.qnn.worker import CONTEXT
from fuseq.errors import FuseqError
from fuseq.qdq.layout import FORMAT, Layout


class ContextRunner(Runner):
    """The emulator, on one binary; `model_ctx.onnx` beside it says how its inputs are called.

    A context shows nothing of what is inside. What its integers mean is known to the bundle that it
    lies in; images are taken and given with their channels first.
    """

    name = "bin"
    emulates = "the HTP of a Snapdragon chip"

    def __init__(self, file: Path) -> None:
        """Read what is beside a binary; nothing runs yet.

        Args:
            file: `model_ctx_qnn.bin` of a bundle.

        Raises:
            FuseqError: FQ013 without a context beside it that names it, FQ502 or FQ503 if there is
                no emulator here.
        """
        version = require_emulator()
        self._context = file.parent / CONTEXT
        if file.name != emulator.BINARY or not self._context.is_file():
            raise FuseqError(
                "FQ013",
                f"'{file}' is no context binary of a bundle",
                why=f"one is called {emulator.BINARY} and has {CONTEXT} beside it",
                fix="name the file where lower wrote it",
            )
        model = onnx.load(str(self._context))
        self.chip = _chip(model, file)
        self.runtime = f"{WHEEL} {version} HTP v{self.chip.htp} ({self.chip.name})"
        self.note = EMULATED
        self.quantized = True
        specs = [value.type.tensor_type for value in model.graph.input]
        self._inputs = [value.name for value in model.graph.input]
        self.output_names = tuple(value.name for value in model.graph.output)
        notes = {entry.key: entry.value for entry in model.metadata_props}
        self._layout, self.says_layout = Layout.said_by(notes), FORMAT in notes
        self.shapes = tuple(
            self._layout.shape([size.dim_value for size in spec.shape.dim]) for spec in specs
        )
        self.dtypes = tuple(str(helper.tensor_dtype_to_np_dtype(s.elem_type)) for s in specs)

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Outputs for inputs."""
        turned = map(self._layout.inward, inputs)
        feeds = dict(zip(self._inputs, turned, strict=True))
        found = emulator.run(self._context, self.chip, feeds)
        return tuple(self._layout.outward(found[name]) for name in self.output_names)

    def integers(self, *inputs: np.ndarray) -> Mapping[str, np.ndarray]:
        """None: what is inside a context cannot be asked for."""
        return {}


def _chip(model: onnx.ModelProto, file: Path) -> Chip:
    number = chip_number(model)
    known = {str(chip.soc_model): chip for chip in CHIPS.values()}
    if number not in known:
        raise FuseqError(
            "FQ013",
            f"'{file}' was compiled for chip {number or 'none'}, which is not known here",
            fix="`fuseq backends qnn` lists the chips that are",
        )
    return known[number]
