"""Brevitas: its graph quantization with weights per channel; what ships is its ONNX QCDQ file.

Scales of activations are parameters: they start from the statistics of 40 batches, the observing
of the recipe. By default it takes 300, and each batch until then has a scale of its own: a run of
200 steps would never see the scales that ship. What is learned goes on to the end: nothing to
freeze.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from brevitas.export import export_onnx_qcdq
from brevitas.graph.calibrate import calibration_mode
from brevitas.graph.quantize import preprocess_for_quantize, quantize
from brevitas.nn import QuantConv2d, QuantIdentity, QuantReLU
from brevitas.quant import (
    Int8WeightPerChannelFloat,
    Int32Bias,
    ShiftedUint8ActPerTensorFloat,
    Uint8ActPerTensorFloat,
)
from torch import Tensor, nn

from benchmarks.peers.bed import Prepared, Run

OBSERVED = 40
SIGNED = {
    "act_quant": ShiftedUint8ActPerTensorFloat.let(collect_stats_steps=OBSERVED),
    "return_quant_tensor": True,
}
UNSIGNED = {
    "act_quant": Uint8ActPerTensorFloat.let(collect_stats_steps=OBSERVED),
    "return_quant_tensor": True,
}
CONVOLUTION = {"weight_quant": Int8WeightPerChannelFloat, "bias_quant": Int32Bias}


def _quantized(model: nn.Module) -> Any:
    return quantize(
        preprocess_for_quantize(copy.deepcopy(model).eval()),
        quant_identity_map={
            "signed": (QuantIdentity, SIGNED),
            "unsigned": (QuantIdentity, UNSIGNED),
        },
        compute_layer_map={nn.Conv2d: (QuantConv2d, CONVOLUTION)},
        quant_act_map={nn.ReLU: (QuantReLU, UNSIGNED)},
    )


def ptq(model: nn.Module, calibration: list[Tensor], out: Path) -> Path:
    """Calibrated."""
    quantized = _quantized(model)
    with torch.no_grad(), calibration_mode(quantized):
        for image in calibration:
            quantized(image)
    return _written(quantized.eval(), calibration[0], out)


def qat(model: nn.Module, calibration: list[Tensor], out: Path) -> Prepared:
    """Trained with its straight-through quantizers."""
    quantized = _quantized(model).train()
    return Prepared(
        quantized,
        deploy=lambda: _written(copy.deepcopy(quantized).eval(), calibration[0], out),
    )


def _written(quantized: nn.Module, example: Tensor, out: Path) -> Path:
    # The newer exporter refuses biases of integers.
    export_onnx_qcdq(quantized, args=example, export_path=str(out / "int8.onnx"), dynamo=False)
    return out / "int8.onnx"


def fused(model: nn.Module, example: Tensor, out: Path) -> Run:
    """What it merges before it quantizes."""
    run: Run = preprocess_for_quantize(copy.deepcopy(model).eval())
    return run
