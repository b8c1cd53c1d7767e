"""Stem and head that start as bilinear interpolation, each on top of small random weights.

With random weights a short training spends its time on learning to copy the image. Pixel (i, j) of
an enlarged 3x3 cell lies at (i - 1)/3, (j - 1)/3 from the cell's centre, hence the kernels

    k_ij = t_i t_j^T,    t_0 = (1, 2, 0)/3,    t_1 = (0, 3, 0)/3,    t_2 = (0, 2, 1)/3

The image travels in COPIES copies of each colour, enlarged by GAIN. An 8-bit tensor has one step
for all its channels, set by its widest; copies and gain keep that step small against the image.
"""

import torch
from data import SCALE
from model import SuperResolution
from torch import nn

COPIES, GAIN = 10, 4.0


@torch.no_grad()
def start_as_bilinear(model: SuperResolution, copies: int = COPIES, gain: float = GAIN) -> None:
    """Initialize ``model``, in place, as bilinear interpolation plus small random weights."""
    taps = torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 0.0], [0.0, 2.0, 1.0]]) / 3
    kernels = torch.einsum("iy,jx->ijyx", taps, taps).reshape(SCALE * SCALE, 3, 3)
    model.head.weight *= 0.1
    for channel in range(3 * copies):
        color = channel % 3
        model.stem.weight[channel, color, 1, 1] += gain
        rows = slice(SCALE * SCALE * color, SCALE * SCALE * (color + 1))
        model.head.weight[rows, channel] += kernels / (gain * copies)
    for bias in (model.stem.bias, model.head.bias):
        assert bias is not None
        bias.zero_()
    # n branches of variance 1/n add up to unit variance; the last block starts as a correction.
    for block in model.blocks:
        norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
        scale = 0.1 if block is model.blocks[-1] else len(norms) ** -0.5
        for norm in norms:
            norm.weight.fill_(scale)
