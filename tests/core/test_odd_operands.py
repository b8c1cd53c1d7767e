"""Products of a map and something that is no constant and no map of numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fuseq


class DividedBySize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) / x.shape[2]
        return y


class Masked(DividedBySize):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y * (y > 0.0)  # continuous, so that rounding cannot flip much


def test_a_factor_that_is_a_size_is_not_fused() -> None:
    torch.manual_seed(0)
    model, x = DividedBySize().eval(), torch.rand(2, 3, 9, 12)
    program = fuseq.fuse(model, torch.rand(1, 3, 8, 8))
    torch.testing.assert_close(program(x), model(x))
    assert program.report is not None
    assert "a size of the input" in program.report["refused"][0]["reason"]


def test_a_product_with_a_mask_stays_float() -> None:
    torch.manual_seed(0)
    model, x = Masked().eval(), torch.rand(1, 3, 8, 8)
    program = fuseq.quantize(model, x, calibration=[x])
    assert program.quantization is not None
    assert "gt" not in program.quantization.grids
    assert (program(x) - model(x)).norm() < 0.02 * model(x).norm()
