"""Looking into TFLite files."""

from __future__ import annotations

from pathlib import Path

from ai_edge_litert import schema_py_generated as schema

from fuseq.backends.tflite.file import unpacked

_NAMES = {value: name for name, value in vars(schema.BuiltinOperator).items() if name.isupper()}


def operators(file: Path) -> list[str]:
    """Names of a file's operators, in order."""
    model = unpacked(file.read_bytes())
    codes = [_NAMES[code.builtinCode] for code in model.operatorCodes]
    return [codes[operator.opcodeIndex] for operator in model.subgraphs[0].operators]
