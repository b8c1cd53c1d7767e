"""Runs QDQ files on the HTP emulator of one chip, and shows every integer on the way.

The HTP's arithmetic is not published, so nothing here imitates it. To hold it to account op by op,
the output of every quantizer is made an output of the file: each op can then be computed again from
the HTP's own operands (`op_steps`), and one rounding is counted once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from fuseq.backend import Runner
from fuseq.backends.qnn import emulator
from fuseq.backends.qnn.chips import Chip
from fuseq.backends.qnn.host import EMULATED, WHEEL, require_emulator
from fuseq.backends.qnn.spellings import IGNORED
from fuseq.qdq.layout import Layout
from fuseq.qdq.runner import by_value, with_integers


class HtpRunner(Runner):
    """The emulator of a chip, on one file.

    Images go in and come out with their channels first, whatever the layout of the file.
    """

    name = "onnx"
    emulates = "the HTP of a Snapdragon chip"

    def __init__(self, file: Path, chip: Chip) -> None:
        """Read a file; nothing runs yet.

        Args:
            file: QDQ ONNX with fixed sizes.
            chip: whose emulator to run it on.

        Raises:
            FuseqError: FQ502 or FQ503 if there is no emulator here.
        """
        self.runtime = f"{WHEEL} {require_emulator()} HTP v{chip.htp} ({chip.name})"
        self.note = EMULATED
        self.chip, self._file = chip, file
        model = onnx.load(str(file))
        notes = {entry.key: entry.value for entry in model.metadata_props}
        self._layout = Layout.said_by(notes)
        self._inputs = [value.name for value in model.graph.input]
        self._outputs = [value.name for value in model.graph.output]
        specs = [value.type.tensor_type for value in model.graph.input]
        self.shapes = tuple(
            self._layout.shape([size.dim_value for size in spec.shape.dim]) for spec in specs
        )
        self.dtypes = tuple(str(helper.tensor_dtype_to_np_dtype(s.elem_type)) for s in specs)
        self.quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.node)

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Outputs for inputs."""
        return self.run(self._file, *inputs)

    def run(self, file: Path, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Outputs of another file with the same interface: a context of this one."""
        found = emulator.run(file, self.chip, self._feeds(inputs))
        return tuple(self._layout.outward(found[name]) for name in self._outputs)

    def integers(self, *inputs: np.ndarray) -> Mapping[str, np.ndarray]:
        """Integers of every quantized value, by value name."""
        return self.shown(*inputs)[0]

    def shown(self, *inputs: np.ndarray) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, ...]]:
        """Integers of every quantized value, and the outputs of the same run.

        They may differ from the outputs of the file as it is: the HTP fuses more where nothing in
        between is asked for.
        """
        with tempfile.TemporaryDirectory(prefix="fuseq.htp.") as folder:
            exposed = Path(folder) / "exposed.onnx"
            # An activation on a layer's sums would be computed apart if what stands before it in
            # the file were asked for.
            onnx.save(with_integers(onnx.load(str(self._file)), but=IGNORED), str(exposed))
            found = emulator.run(exposed, self.chip, self._feeds(inputs))
        integers = by_value(found, found.values())
        return integers, tuple(self._layout.outward(found[name]) for name in self._outputs)

    def _feeds(self, inputs: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
        pairs = zip(self._inputs, inputs, strict=True)
        return {name: self._layout.inward(x) for name, x in pairs}
