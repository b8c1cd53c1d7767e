"""fuseq: from multi-branch PyTorch CNNs to INT8 files, with every step proved.

Importing this package is cheap; torch comes with the first name that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fuseq.errors import FuseqError

if TYPE_CHECKING:
    from fuseq.capture import capture
    from fuseq.program import Program
    from fuseq.rewrite import (
        Approximates,
        NewFunction,
        Pass,
        Pipeline,
        Predicate,
        Promise,
        SameFunction,
    )

_HOMES = {
    "capture": "fuseq.capture",
    "Program": "fuseq.program",
    "Approximates": "fuseq.rewrite",
    "NewFunction": "fuseq.rewrite",
    "Pass": "fuseq.rewrite",
    "Pipeline": "fuseq.rewrite",
    "Predicate": "fuseq.rewrite",
    "Promise": "fuseq.rewrite",
    "SameFunction": "fuseq.rewrite",
}

__all__ = ["FuseqError", *_HOMES]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fuseq' has no attribute '{name}'")
