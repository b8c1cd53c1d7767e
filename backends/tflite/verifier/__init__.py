"""The rules of the format that LiteRT relies on and does not check.

LiteRT runs a max pool whose result has another scale than its operand, a bias at the wrong scale,
a tanh with another zero point; what comes out is wrong. So every file is checked before it leaves
the backend. The rules read only the file: a fault in the emitter cannot hide from them.
"""

from __future__ import annotations

from fuseq.backends.tflite.graph import read_graph
from fuseq.backends.tflite.verifier.grids import grid_violations
from fuseq.backends.tflite.verifier.interface import order_violations, signature_violations
from fuseq.backends.tflite.verifier.shapes import shape_violations
from fuseq.backends.tflite.verifier.versions import version_violations
from fuseq.backends.tflite.verifier.violation import Violation
from fuseq.backends.tflite.verifier.written_here import own_violations
from fuseq.errors import FuseqError

__all__ = ["Violation", "require_valid", "violations"]

_OF_AN_OPERATOR = (version_violations, grid_violations, shape_violations)


def violations(data: bytes) -> list[Violation]:
    """Every broken rule of a TFLite file, in the order of its operators; empty if there is none.

    Args:
        data: content of any TFLite file. Of a file that fuseq wrote, the metadata is checked too.
    """
    graph = read_graph(data)
    found = [v for operator in graph.operators for rule in _OF_AN_OPERATOR for v in rule(operator)]
    return [
        *found,
        *order_violations(graph),
        *signature_violations(graph),
        *own_violations(graph),
    ]


def require_valid(data: bytes, file: str) -> None:
    """Raise FQ507 for a file that breaks a rule.

    Args:
        data: content of the file.
        file: its name.

    Raises:
        FuseqError: FQ507 with every broken rule, its operator and its value.
    """
    found = violations(data)
    if found:
        raise FuseqError(
            "FQ507",
            f"{file} breaks {len(found)} of the format's rules",
            where=str(found[0]).split(": ")[0],
            why="\n       ".join(str(violation) for violation in found),
            fix="this is a fault of the backend: report it, with the model if you can",
        )
