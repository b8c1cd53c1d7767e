r"""`round-weights`: weights are rounded together, not each by itself.

With P the patches of the integers that a layer reads (one column per batch and position), t the
float output W x + b on the scale of the accumulator, less the frozen bias, and q the integers of
one output channel, the squared error of that channel over the calibration data is

    |q P - t|^2  =  q H q^T - 2 q c^T + constant,      H = P P^T,   c = t P^T

(the local loss of Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training
Quantization", with the input of the integer network and the output of the float one). It is
lowered by cyclic coordinate descent from the integers at hand, as in QuantEase (Behdin et al.
2023) and COMQ (Zhang et al. 2024): the best value of one weight with all others fixed is

    q_k <- rint(q_k - (q H - c)_k / H_kk),      at most 1 from the nearest integer of the weight,

which takes two sums per step instead of a training run. H + 0.01 mean(diag H) keeps weights that
the data say nothing of where they are. benchmarks/ptq.py compares the result with AdaRound's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.quant.executor import Quantized
from fuseq.quant.grid import quantize_weight
from fuseq.quant.refine import Layer, Study, refine
from fuseq.requirements import quantized

DAMPING = 0.01
"""Weight of the distance to the float weights, against the mean of the diagonal of H."""

POSITIONS = 4096
"""About how many positions of a batch are used: bounds time and memory on large images."""

CYCLES = 50
"""Most times that every weight is visited; descent ends far earlier, where no weight moves."""


@dataclass(frozen=True)
class RoundWeights(fuseq.Pass):
    """Move frozen weights by at most one step, so that each layer's output is closest.

    Layers are rounded in the order in which they run, each for what the rounded ones before it
    give. A channel whose output would then be further from the float network's keeps its weights.
    Leaves a `Refined` for each layer.

    Attributes:
        calibration: batches of inputs, read once and kept while the pass runs.
        progress: called with the number of batches done so far, twice over all levels of layers.
    """

    name: ClassVar[str] = "round-weights"
    promise: ClassVar[fuseq.Promise] = fuseq.NewFunction("rounds weights together")
    requires: ClassVar[tuple[fuseq.Predicate, ...]] = (quantized,)

    calibration: Iterable[Any] | None = field(default=None, repr=False)
    progress: Callable[[int], None] | None = field(default=None, repr=False)

    def run(self, program: Program) -> int:
        """Set `program.quantization`; returns the number of output channels that changed.

        Raises:
            FuseqError: FQ202 without data, FQ006 for data that is empty or does not fit.
        """
        if self.calibration is None:
            raise FuseqError(
                "FQ202", "round-weights needs data", fix="--calib DIR, or calibration_data()"
            )
        program.quantization, found = refine(
            program, "weight", _SquaredError, self.calibration, self.progress
        )
        for record in found:
            program.note(record)
        return sum(record.channels for record in found)


class _SquaredError(Study):
    """H and c of the module docstring, `[groups, K, K]` and `[groups, channels / groups, K]`.

    float64 holds the integer sums of H exactly, whatever their order.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.groups = layer.module.groups if isinstance(layer.module, nn.Conv2d) else 1
        channels, inputs = layer.weight.flatten(1).shape
        self.gram = torch.zeros(self.groups, inputs, inputs, dtype=torch.float64)
        self.cross = torch.zeros(self.groups, channels // self.groups, inputs, dtype=torch.float64)

    def update(self, x: Quantized, y: Tensor) -> None:
        layer = self.layer
        centered = (x.q - x.grid.zero_point).double()
        patches, outputs = _positions(layer.module, centered, y.double())
        targets = outputs / (x.grid.scale.double() * layer.weight_grid.scale.double())[:, None]
        if layer.bias is not None:
            targets = targets - layer.bias[:, None]
        patches = patches.reshape(self.groups, -1, patches.shape[-1])
        self.gram += patches @ patches.mT
        self.cross += targets.reshape(self.groups, -1, targets.shape[-1]) @ patches.mT

    def proposal(self) -> Tensor:
        layer = self.layer
        weight = layer.module.weight.detach()
        scale = layer.weight_grid.scale.double().reshape(-1, *[1] * (weight.dim() - 1))
        exact = (weight.double() / scale).reshape(self.cross.shape)
        nearest = quantize_weight(weight, layer.weight_grid).double().reshape(self.cross.shape)
        damping = DAMPING * self.gram.diagonal(dim1=1, dim2=2).mean(1).reshape(-1, 1, 1)
        lowered = _descended(
            layer.weight.double().reshape(self.cross.shape),
            self.gram + damping * torch.eye(self.gram.shape[-1], dtype=torch.float64),
            self.cross + damping * exact,
            (nearest - 1).clamp_min(-127),
            (nearest + 1).clamp_max(127),
        )
        return lowered.reshape(layer.weight.shape).to(torch.int8)


def _positions(module: nn.Conv2d | nn.Linear, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Patches `[inputs, positions]` and outputs `[channels, positions]`, evenly thinned out."""
    if isinstance(module, nn.Linear):
        step = len(x.flatten(0, -2)) // POSITIONS + 1
        return x.flatten(0, -2)[::step].mT, y.flatten(0, -2)[::step].mT
    assert not isinstance(module.padding, str)
    (top, left), (high, wide) = module.padding, module.dilation
    spans = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    padded = F.pad(x, (left, left, top, top))
    windows = padded.unfold(2, spans[0], module.stride[0]).unfold(3, spans[1], module.stride[1])
    # An odd step meets every phase of what repeats with the powers of two.
    step = int((y[:, 0].numel() / POSITIONS) ** 0.5) // 2 * 2 + 1
    windows = windows[:, :, ::step, ::step, ::high, ::wide].permute(1, 4, 5, 0, 2, 3)
    return windows.flatten(0, 2).flatten(1), y[:, :, ::step, ::step].transpose(0, 1).flatten(1)


def _descended(start: Tensor, gram: Tensor, cross: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Cyclic coordinate descent of `q H q^T - 2 q c^T` over integers within bounds.

    Args:
        start: `[groups, channels, inputs]`, float64 integers.
        gram: H, `[groups, inputs, inputs]`.
        cross: c, as `start`.
        low: lower bounds, as `start`.
        high: upper bounds, as `start`.

    Returns:
        Integers whose value is at most that of `start`.
    """
    q, slope = start.clone(), start @ gram - cross
    curvature = gram.diagonal(dim1=1, dim2=2).unsqueeze(1)
    for _ in range(CYCLES):
        before = q.clone()
        for k in range(q.shape[-1]):
            now, curve = q[..., k], curvature[..., k]
            best = torch.round(now - slope[..., k] / curve.clamp_min(torch.finfo().tiny))
            step = best.clamp(low[..., k], high[..., k]) - now
            falls = step * (2 * slope[..., k] + step * curve) < 0
            step = torch.where(falls, step, 0.0)
            q[..., k] += step
            slope += step[..., None] * gram[:, None, k]
        if torch.equal(q, before):
            break
    return q
