"""Quantization-aware training in the integers of the target."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuseq.qat.curriculum import Curriculum, Stage
    from fuseq.qat.distillation import Features, SelfTeacher, feature_loss
    from fuseq.qat.losses import FidelityLoss, charbonnier, confidence_weighted_l1, dct_l1
    from fuseq.qat.model import QatModel, finalize, float_program
    from fuseq.qat.preparation import prepare
    from fuseq.qat.reweighting import LearnableReweighting

_HOMES = {
    "Curriculum": "fuseq.qat.curriculum",
    "Features": "fuseq.qat.distillation",
    "FidelityLoss": "fuseq.qat.losses",
    "LearnableReweighting": "fuseq.qat.reweighting",
    "QatModel": "fuseq.qat.model",
    "SelfTeacher": "fuseq.qat.distillation",
    "Stage": "fuseq.qat.curriculum",
    "charbonnier": "fuseq.qat.losses",
    "confidence_weighted_l1": "fuseq.qat.losses",
    "dct_l1": "fuseq.qat.losses",
    "feature_loss": "fuseq.qat.distillation",
    "finalize": "fuseq.qat.model",
    "float_program": "fuseq.qat.model",
    "prepare": "fuseq.qat.preparation",
}

__all__ = [
    "Curriculum",
    "Features",
    "FidelityLoss",
    "LearnableReweighting",
    "QatModel",
    "SelfTeacher",
    "Stage",
    "charbonnier",
    "confidence_weighted_l1",
    "dct_l1",
    "feature_loss",
    "finalize",
    "float_program",
    "prepare",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fuseq.qat' has no attribute '{name}'")
