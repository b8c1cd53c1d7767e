"""fuseq: from multi-branch PyTorch CNNs to INT8 files, with every step proved.

Importing this package is cheap; torch comes with the first name that needs it. No module carries
the name of one of these functions: importing it would replace the function.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fuseq.errors import FuseqError

if TYPE_CHECKING:
    from fuseq.api import fuse, quantize
    from fuseq.bundle import Bundle
    from fuseq.equivalence.pairs import check
    from fuseq.equivalence.result import CheckResult
    from fuseq.lowering import lower
    from fuseq.program import Program
    from fuseq.program_file import read_program, write_program
    from fuseq.quant.executor import execute
    from fuseq.rewrite import (
        Approximates,
        NewFunction,
        Pass,
        Pipeline,
        Predicate,
        Promise,
        SameFunction,
    )
    from fuseq.tracing import capture

_HOMES = {
    "capture": "fuseq.tracing",
    "fuse": "fuseq.api",
    "quantize": "fuseq.api",
    "execute": "fuseq.quant.executor",
    "lower": "fuseq.lowering",
    "check": "fuseq.equivalence.pairs",
    "CheckResult": "fuseq.equivalence.result",
    "Bundle": "fuseq.bundle",
    "Program": "fuseq.program",
    "read_program": "fuseq.program_file",
    "write_program": "fuseq.program_file",
    "Approximates": "fuseq.rewrite",
    "NewFunction": "fuseq.rewrite",
    "Pass": "fuseq.rewrite",
    "Pipeline": "fuseq.rewrite",
    "Predicate": "fuseq.rewrite",
    "Promise": "fuseq.rewrite",
    "SameFunction": "fuseq.rewrite",
}

__all__ = [
    "Approximates",
    "Bundle",
    "CheckResult",
    "FuseqError",
    "NewFunction",
    "Pass",
    "Pipeline",
    "Predicate",
    "Program",
    "Promise",
    "SameFunction",
    "capture",
    "check",
    "execute",
    "fuse",
    "lower",
    "quantize",
    "read_program",
    "write_program",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in ("qat", "testing"):
        return importlib.import_module(f"fuseq.{name}")
    raise AttributeError(f"module 'fuseq' has no attribute '{name}'")
