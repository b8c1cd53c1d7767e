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

_SUFFIX = ".quantized"


class HtpRunner(Runner):
    """The emulator of a chip, on one file.

    Images go in and come out with their channels first, whatever the layout of the file.
    """

    name = "onnx"

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
        self._channels_last = notes.get("fuseq.layout") == "nhwc"
        self._inputs = [value.name for value in model.graph.input]
        self._outputs = [value.name for value in model.graph.output]
        specs = [value.type.tensor_type for value in model.graph.input]
        self.shapes = tuple(self._shape([d.dim_value for d in spec.shape.dim]) for spec in specs)
        self.dtypes = tuple(str(helper.tensor_dtype_to_np_dtype(s.elem_type)) for s in specs)
        self.quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.node)

    def __call__(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Outputs for inputs."""
        return self.run(self._file, *inputs)

    def run(self, file: Path, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Outputs of another file with the same interface: a context of this one."""
        found = emulator.run(file, self.chip, self._feeds(inputs))
        return tuple(self._outward(found[name]) for name in self._outputs)

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
            onnx.save(with_integers(onnx.load(str(self._file))), str(exposed))
            found = emulator.run(exposed, self.chip, self._feeds(inputs))
        integers = {
            name.removesuffix(_SUFFIX): value
            for name, value in found.items()
            if name.endswith(_SUFFIX)
        }
        return integers, tuple(self._outward(found[name]) for name in self._outputs)

    def _feeds(self, inputs: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
        last = self._channels_last
        return {
            name: x.transpose(0, 2, 3, 1) if last and x.ndim == 4 else x
            for name, x in zip(self._inputs, inputs, strict=True)
        }

    def _outward(self, y: np.ndarray) -> np.ndarray:
        return y.transpose(0, 3, 1, 2) if self._channels_last and y.ndim == 4 else y

    def _shape(self, sizes: list[int]) -> tuple[int, ...]:
        last = self._channels_last and len(sizes) == 4
        return tuple(sizes[d] for d in (0, 3, 1, 2)) if last else tuple(sizes)


def with_integers(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that gives the output of every quantizer too, but of those that the HTP passes over.

    An activation on a layer's sums would be computed apart if the value between them were asked
    for.
    """
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    known = {value.name for value in exposed.graph.output}
    zero_points = {tensor.name: tensor.data_type for tensor in exposed.graph.initializer}
    for node in exposed.graph.node:
        name = node.output[0]
        if node.op_type == "QuantizeLinear" and name not in known and IGNORED not in name:
            value = helper.make_tensor_value_info(name, zero_points[node.input[2]], None)
            exposed.graph.output.append(value)
    return exposed
