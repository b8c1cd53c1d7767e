"""Why the compiler refuses nodes: it raises one general error, and the reasons are in its log.

Each looks like this, with one line for every node of a group:

    ... GetCapability pass 2 (post-Layout-Transform)
    ... backendValidateOpConfig() failed for node `up_token_6` of type `TransposeConv2d` with ...
    ... Validation FAILED for 2 nodes in OrtNodeUnit (ConvTranspose) :
            Operator type: DequantizeLinear Node name: up.in Node index: 8
            Operator type: ConvTranspose Node name: up_token_6 Node index: 23
            REASON : Failed to add node.

The graph is tried before layouts are changed, after that (which counts), and, where that failed,
again with what is left of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PASS = "GetCapability pass "
_REFUSED = re.compile(
    r"Validation FAILED for \d+ nodes in OrtNodeUnit \((?P<op>\S+)\) :\n"
    r"(?P<nodes>(?:\tOperator type: .*\n)+)"
    r"\tREASON : (?P<reason>.*)"
)
_NODE = re.compile(r"\tOperator type: (?P<op>\S+) Node name: (?P<name>.*) Node index: \d+\n")
_BY_LIBRARY = re.compile(
    r"ValidateOpConfig\(\) failed for node `(?P<name>.*)` of type `(?P<op>.*)` with (?P<error>.*)"
)
_NO_REASON = "Failed to add node."
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
    are all there is.
    """
    passes = log.split(_PASS)
    counts = next((part for part in passes if part.startswith("2 ")), passes[-1])
    by_library = {
        match["name"]: f"the HTP has no {match['op']} for such operands ({match['error']})"
        for match in _BY_LIBRARY.finditer(counts)
    }
    found: dict[str, RefusedNode] = {}
    for match in _REFUSED.finditer(counts):
        nodes = {n["name"]: n["op"] for n in _NODE.finditer(match["nodes"])}
        name = next((name for name, op in nodes.items() if op == match["op"]), "")
        reason = match["reason"].strip()
        if reason == _NO_REASON:
            reason = by_library.get(name, reason)
        written = name.partition("_token_")[0]
        found.setdefault(written, RefusedNode(written, match["op"], reason))
    ops = [node for node in found.values() if node.op not in _QUANTIZERS]
    return ops or list(found.values())
