"""Why the compiler refuses nodes: it raises one general error, and the reasons are in its log.

Each looks like this, with one line for every node of a group:

    ... Validation FAILED for 1 nodes in OrtNodeUnit (Mish) :
            Operator type: Mish Node name: act Node index: 4
            REASON : Operators of type `Mish` are not supported by QNN EP.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_REFUSED = re.compile(
    r"Validation FAILED for \d+ nodes in OrtNodeUnit \((?P<op>\S+)\) :\n"
    r"(?P<nodes>(?:\tOperator type: .*\n)+)"
    r"\tREASON : (?P<reason>.*)"
)
_NODE = re.compile(r"\tOperator type: (?P<op>\S+) Node name: (?P<name>.*) Node index: \d+\n")
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class RefusedNode:
    """One node of a file.

    Attributes:
        name: of the node.
        op: its ONNX op.
        reason: the compiler's words.
    """

    name: str
    op: str
    reason: str


def refused_nodes(log: str) -> list[RefusedNode]:
    """Every node that a log says is refused, once.

    A quantizer whose op is refused is refused with it, so quantizers are told of only where they
    are all there is. The compiler tries a graph several times: what it fused itself is left out.
    """
    found: dict[str, RefusedNode] = {}
    for match in _REFUSED.finditer(log):
        nodes = {n["name"]: n["op"] for n in _NODE.finditer(match["nodes"])}
        name = next((name for name, op in nodes.items() if op == match["op"]), "")
        if name and not name.startswith("QNNExecutionProvider_"):
            found.setdefault(name, RefusedNode(name, match["op"], match["reason"].strip()))
    ops = [node for node in found.values() if node.op not in _QUANTIZERS]
    return ops or list(found.values())
