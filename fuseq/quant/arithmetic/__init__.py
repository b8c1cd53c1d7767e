"""Arithmetics: what integers each runtime computes."""

from __future__ import annotations

from fuseq.quant.arithmetic.base import Arithmetic
from fuseq.quant.arithmetic.htp import Htp
from fuseq.quant.arithmetic.ideal import Ideal
from fuseq.quant.arithmetic.ort import OnnxRuntime
from fuseq.quant.arithmetic.tflite_ref import TfliteReference
from fuseq.quant.arithmetic.xnnpack import XnnPack

ARITHMETICS: dict[str, Arithmetic] = {
    "ideal": Ideal(),
    "ort": OnnxRuntime(),
    "xnnpack": XnnPack(),
    "tflite-ref": TfliteReference(),
    "htp": Htp(),
}

__all__ = ["ARITHMETICS", "Arithmetic", "Htp", "Ideal", "OnnxRuntime", "TfliteReference", "XnnPack"]
