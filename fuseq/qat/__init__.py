"""Quantization-aware training in the integers of the target."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuseq.qat.curriculum import Curriculum, Stage
    from fuseq.qat.model import QatModel, finalize, float_program
    from fuseq.qat.preparation import prepare

_HOMES = {
    "Curriculum": "fuseq.qat.curriculum",
    "QatModel": "fuseq.qat.model",
    "Stage": "fuseq.qat.curriculum",
    "finalize": "fuseq.qat.model",
    "float_program": "fuseq.qat.model",
    "prepare": "fuseq.qat.preparation",
}

__all__ = ["Curriculum", "QatModel", "Stage", "finalize", "float_program", "prepare"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fuseq.qat' has no attribute '{name}'")
