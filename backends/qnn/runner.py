"""Runs emitted files on ONNX Runtime's CPU, every op in float between its quantizers.

That is what the file says. The quantizers that HTP passes over (see `spellings`) are taken out
first, so that what is compared with the executor is what HTP is to compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from fuseq.backends.qnn.spellings import CENTERED, DERIVED, IGNORED
from fuseq.qdq.runner import QdqRunner


class EmittedRunner(QdqRunner):
    """A session on one file, without graph optimizations."""

    def __init__(self, file: Path) -> None:
        """Load a file.

        Args:
            file: an ONNX model.

        Raises:
            FuseqError: FQ013 if the runtime cannot load it.
        """
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what fails comes back as an exception
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        super().__init__(file, options, "emitted, not compiled", without_ignored)
        self.runtime += ", float kernels"

    def parameters(self) -> Mapping[str, np.ndarray]:
        """Those that are in the table of quantization parameters."""
        found = super().parameters()
        names = {tensor.name for tensor in self._model().graph.initializer}
        return {
            name: values[:, :, 1:2, 1:2] if name + CENTERED in names else values
            for name, values in found.items()
            if not any(f"{end}." in f"{name}." for end in DERIVED)
        }


def without_ignored(model: onnx.ModelProto) -> None:
    """Take the quantizers that HTP passes over out of a model, in place."""
    nodes = list(model.graph.node)
    sources = {n.output[0]: n.input[0] for n in nodes if IGNORED in n.output[0]}
    kept = [node for node in nodes if node.output[0] not in sources]
    for node in kept:
        for index, name in enumerate(node.input):
            while name in sources:
                name = sources[name]
            node.input[index] = name
    del model.graph.node[:]
    model.graph.node.extend(kept)
