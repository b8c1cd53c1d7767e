"""What the compiler really gave to the HTP, and the proof that it is what was asked for.

That no node was left to the CPU proves little: an op without its quantizers, and some with them,
runs in float inside the HTP without a word. So the proof reads the graph as it was handed over:
there is one, and nothing but the quantizers of float inputs and outputs touches a float tensor.

A data type is a number whose high byte is the kind (0 int, 1 uint, 2 float, 3 signed and 4 unsigned
fixed point, 5 bool) and whose low byte, read in hexadecimal, is the number of bits: 0x408 is uint8
on a grid, 0x232 is float32.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from fuseq.backends.qnn.chips import Chip
from fuseq.errors import FuseqError

_FLOAT = 2
_QUANTIZERS = ("Quantize", "Dequantize")
_COMPATIBILITY = "ep_compatibility_info.QNNExecutionProvider"
_CHIP_FIELD = 5  # of the colon-separated fields in it


@dataclass(frozen=True)
class HtpGraph:
    """A graph as the HTP was given it.

    Attributes:
        ops: HTP op types with their number.
        floats: nodes that compute with a float tensor, with their op type.
    """

    ops: Mapping[str, int]
    floats: Mapping[str, str]

    @property
    def transposes(self) -> int:
        """How many ops only move values to another layout."""
        return self.ops.get("Transpose", 0)


def read_htp_graph(file: Path) -> HtpGraph:
    """A graph from the compiler's JSON."""
    graph: dict[str, Any] = json.loads(file.read_text())["graph"]
    floats = {
        name for name, tensor in graph["tensors"].items() if tensor["data_type"] >> 8 == _FLOAT
    }
    return HtpGraph(
        dict(sorted(Counter(node["type"] for node in graph["nodes"].values()).items())),
        {
            name.partition("_token_")[0]: node["type"]
            for name, node in graph["nodes"].items()
            if node["type"] not in _QUANTIZERS
            and floats.intersection([*node["input_names"], *node["output_names"]])
        },
    )


def only_graph(folder: Path) -> Path:
    """The JSON of the one graph that was given to the HTP.

    Raises:
        FuseqError: FQ303 if there are more, or none.
    """
    files = [file for file in folder.glob("*.json") if not file.stem.endswith("_tensor_log")]
    if len(files) != 1:
        raise FuseqError(
            "FQ303",
            f"the HTP was given {len(files)} graphs instead of one",
            fix="an operation between them runs elsewhere: rewrite it",
        )
    return files[0]


def require_integer_graph(file: Path) -> HtpGraph:
    """A graph that is all integers inside.

    Raises:
        FuseqError: FQ303 if floats are computed in it.
    """
    graph = read_htp_graph(file)
    if graph.floats:
        raise FuseqError(
            "FQ303",
            f"{len(graph.floats)} ops of the compiled graph compute in float",
            where=f"`{next(iter(graph.floats))}`",
            why="the compiler took them without quantized operands: "
            + ", ".join(f"`{name}` ({op})" for name, op in graph.floats.items()),
            fix="give each input and output of these operations a quantizer",
        )
    return graph


def chip_number(context: onnx.ModelProto) -> str:
    """Number of the chip that a context names, or the empty string."""
    notes = {entry.key: entry.value for entry in context.metadata_props}
    fields = notes.get(_COMPATIBILITY, "").split(":")
    return fields[_CHIP_FIELD] if len(fields) > _CHIP_FIELD else ""


def require_made_for(chip: Chip, context: Path) -> None:
    """Compare the chip that a context names with the one asked for.

    Raises:
        FuseqError: FQ304 if it is another, or none.
    """
    named = chip_number(onnx.load(str(context)))
    if named != str(chip.soc_model):
        raise FuseqError(
            "FQ304",
            f"the context names chip {named or 'none'}, not {chip.soc_model} ({chip.name})",
            fix="delete it and lower again; if it happens again, the tool's version is at fault",
        )
