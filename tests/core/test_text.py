"""The text form: every kind of line once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq.text import to_text


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, (3, 1), 2, (1, 0), groups=2, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.norm = nn.BatchNorm2d(4, eps=1e-3)
        self.head = nn.Linear(4, 2)
        self.gain = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = F.leaky_relu(self.conv(x), 0.2)
        y = torch.cat([self.norm(self.up(y)) * self.gain, x[:, :2]], 1)
        z = self.head(x.mean((2, 3)))
        return {"image": F.elu(y).flatten(2), "score": z}


TEXT = """\
%x = input() : f32[1,4,8,6]
%conv = conv2d(%x) channels=4->8 kernel=3x1 stride=(2, 2) padding=(1, 0) groups=2 bias=False \
: f32[1,8,4,3]
%leaky_relu = leaky_relu(%conv) negative_slope=0.2 : f32[1,8,4,3]
%up = conv_transpose2d(%leaky_relu) channels=8->4 kernel=2x2 stride=(2, 2) : f32[1,4,8,6]
%norm = batch_norm(%up) eps=0.001 : f32[1,4,8,6]
%gain = constant() : f32[4,1,1]
%mul = mul(%norm, %gain) : f32[1,4,8,6]
%slice_1 = slice(%x) dim=1 start=0 end=2 step=1 : f32[1,2,8,6]
%concat = concat((%mul, %slice_1)) dim=1 : f32[1,6,8,6]
%mean = mean(%x) dim=(2, 3) keepdim=False : f32[1,4]
%head = linear(%mean) channels=4->2 : f32[1,2]
%elu = foreign:elu(%concat) alpha=1 : f32[1,6,8,6]
%sym_size_int = shape(%elu, 0)
%reshape = reshape(%elu) shape=(%sym_size_int, 6, -1) : f32[1,6,48]
return {image: %reshape, score: %head}
"""


def test_every_kind_of_line() -> None:
    program = fuseq.capture(Net(), torch.randn(1, 4, 8, 6))
    assert to_text(program) == TEXT


def test_weights_do_not_show() -> None:
    first, second = (fuseq.capture(Net(), torch.randn(1, 4, 8, 6)) for _ in range(2))
    assert to_text(first) == to_text(second)


def test_doubles_and_grids() -> None:
    program = fuseq.capture(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), torch.rand(1, 4, 8, 6))
    assert ": f64[1,4,8,6]" in to_text(program.twin(torch.float64))
    quantized = fuseq.quantize(program, calibration=[program.example_inputs])
    assert quantized.quantization is not None
    grid = quantized.quantization.grids["relu"]
    line = next(line for line in to_text(quantized).splitlines() if line.startswith("%relu"))
    assert line.endswith(f": f32[1,4,8,6] @ {grid}")
