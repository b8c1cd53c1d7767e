"""Every way PyTorch code spells an op, and its one canonical form.

Each rule is registered for the functions, methods (by name) and aten overloads that mean the same
thing; it builds the canonical node. A new spelling is taught here and nowhere else. Values a rule
receives are graph nodes, constant tensors, numbers, or tuples of these; an op whose operands are
all constants never reaches a rule (`Builder.call_target` computes it).
"""

from fuseq.spelling import (
    activations,
    arithmetic,
    arranging,
    creating,
    layers,
    norms,
    pooling,
    selecting,
    sizes,
    unchanged,
)
from fuseq.spelling.registry import RULES, spelled

__all__ = [
    "RULES",
    "activations",
    "arithmetic",
    "arranging",
    "creating",
    "layers",
    "norms",
    "pooling",
    "selecting",
    "sizes",
    "spelled",
    "unchanged",
]
