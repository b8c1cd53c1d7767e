r"""`correct-bias`: the mean error that integers add to an output channel is taken out of its bias.

Rounding the weights of a layer shifts the mean of each of its output channels, and clipping those
of values before it do too. With x the input in the float network and x^ that of the integer layer,
W^ and b^ its weight and bias on their grids (Nagel et al. 2019, "Data-Free Quantization Through
Weight Equalization and Bias Correction", section 4.2; the means are measured, as in their
empirical variant),

    b^ <- b^ + E[(W x + b) - (W^ x^ + b^)]        over all batches and positions of a channel,

rounded to the bias's own grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

import fuseq
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.quant.executor import Quantized
from fuseq.quant.grid import LARGEST_BIAS
from fuseq.quant.refine import Layer, Study, refine
from fuseq.requirements import quantized


@dataclass(frozen=True)
class CorrectBias(fuseq.Pass):
    """Move the frozen biases so that output channels have the mean of the float network.

    Layers are corrected in the order in which they run, each from what the corrected ones before
    it give. A channel whose output would then be further from the float network's keeps its bias.
    Leaves a `Refined` for each layer that has a bias.

    Attributes:
        calibration: batches of inputs, read once and kept while the pass runs.
        progress: called with the number of batches done so far, over all levels of layers.
    """

    name: ClassVar[str] = "correct-bias"
    promise: ClassVar[fuseq.Promise] = fuseq.NewFunction("moves each bias by the mean error")
    requires: ClassVar[tuple[fuseq.Predicate, ...]] = (quantized,)

    calibration: Iterable[Any] | None = field(default=None, repr=False)
    progress: Callable[[int], None] | None = field(default=None, repr=False)

    def run(self, program: Program) -> int:
        """Set `program.quantization`; returns the number of biases that changed.

        Raises:
            FuseqError: FQ202 without data, FQ006 for data that is empty or does not fit.
        """
        if self.calibration is None:
            raise FuseqError(
                "FQ202", "correct-bias needs data", fix="--calib DIR, or calibration_data()"
            )
        program.quantization, found = refine(
            program, "bias", _MeanError, self.calibration, self.progress
        )
        for record in found:
            program.note(record)
        return sum(record.channels for record in found)


class _MeanError(Study):
    """Mean of the float output minus that of the integer layer, per channel."""

    def __init__(self, layer: Layer) -> None:
        assert layer.bias is not None
        assert layer.bias_grid is not None
        self.layer, self.bias, self.scale = layer, layer.bias, layer.bias_grid.scale.double()
        self.parameters = {
            "weight": layer.weight_grid.dequantize(layer.weight),
            "bias": layer.bias_grid.dequantize(layer.bias),
        }
        self.total = torch.zeros(len(layer.bias), dtype=torch.float64)
        self.count = 0

    def update(self, x: Quantized, y: Tensor) -> None:
        actual = functional_call(self.layer.module, self.parameters, x.grid.dequantize(x.q))
        error = (y.double() - actual.double()).movedim(self.layer.axis, 0).flatten(1)
        self.total += error.sum(1)
        self.count += error.shape[1]

    def proposal(self) -> Tensor:
        moved = self.bias + torch.round(self.total / self.count / self.scale)
        return moved.clamp(-LARGEST_BIAS, LARGEST_BIAS).to(torch.int32)
