"""What is written for chips: a context each, and one DLC."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fuseq.backend import Artifact
from fuseq.backends.qnn.chips import Chip
from fuseq.backends.qnn.emulator import BINARY, GRAPH, compile_context, write_dlc
from fuseq.backends.qnn.worker import CONTEXT

DLC = "model.dlc"


def write_for_chips(model: Path, chips: Sequence[Chip]) -> list[Artifact]:
    """Compile a QDQ file for each chip, into a directory of the chip's name beside it.

    Args:
        model: QDQ ONNX with fixed sizes.
        chips: at least one. A DLC is compiled on the device, for whatever chip that has.

    Raises:
        FuseqError: as `compile_context` and `write_dlc` raise.
    """
    written = []
    for chip in chips:
        compile_context(model, chip, model.parent / chip.name)
        kinds = {CONTEXT: "context", BINARY: "binary", GRAPH: "graph"}
        written += [
            Artifact(f"{chip.name}/{name}", f"{kind}-{chip.name}") for name, kind in kinds.items()
        ]
    write_dlc(model, chips[0], model.parent / DLC)
    return [*written, Artifact(DLC, "dlc")]
