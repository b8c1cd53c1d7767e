"""The lint: what HTP computes wrongly, in float, or not at all, found before anything is compiled.

HTP's compiler takes most of these patterns without a word. One rule is one function with a code;
`wrong_results`, `silent_float` and `unsupported` hold them by what would happen.
"""

from __future__ import annotations

from fuseq import ops
from fuseq.backend import Refusal
from fuseq.backends.qnn.lint import silent_float, unsupported, wrong_results
from fuseq.backends.qnn.lint.place import Place, Rule
from fuseq.program import Program

RULES: dict[str, Rule] = {**wrong_results.RULES, **silent_float.RULES, **unsupported.RULES}
"""Code -> rule, in the order in which they are asked."""


def refusals(program: Program) -> list[Refusal]:
    """Every finding in a program, float or quantized: the first rule that a node breaks.

    Args:
        program: legalized.
    """
    found = []
    for node in program.graph.nodes:
        place = Place(program, node, ops.name_of(program, node))
        findings = ((code, rule(place)) for code, rule in RULES.items())
        first = next(((code, finding) for code, finding in findings if finding), None)
        if first:
            code, (reason, fix) = first
            found.append(Refusal(node.name, program.source(node), f"{code}: {reason}", fix))
    return found
