"""Random layers, quantized: what the passes on frozen integers are tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import hypothesis.strategies as st
import torch
from hypothesis.strategies import DrawFn
from torch import Tensor, nn

import fuseq
from fuseq.program import Program
from fuseq.quant.executor import execute


@dataclass(frozen=True)
class Quantized:
    """A quantized program of one layer, perhaps with an activation, and its calibration data."""

    program: Program
    data: list[Tensor]


@st.composite
def layers(draw: DrawFn) -> Quantized:
    """A convolution (grouped, strided, dilated, padded) or a linear layer, and two batches."""
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    groups, per_group = draw(st.sampled_from([(1, 1), (1, 3), (2, 2), (4, 1)]))
    outputs, bias = groups * draw(st.integers(1, 3)), draw(st.booleans())
    if draw(st.booleans()):
        layer: nn.Module = nn.Linear(groups * per_group, outputs, bias)
        shape: tuple[int, ...] = (draw(st.integers(1, 9)), groups * per_group)
    else:
        layer = nn.Conv2d(
            groups * per_group,
            outputs,
            draw(st.sampled_from([(1, 1), (3, 3), (1, 3), (2, 1)])),
            stride=draw(st.sampled_from([(1, 1), (2, 2), (1, 2)])),
            dilation=draw(st.sampled_from([1, 2])),
            padding=draw(st.sampled_from([(0, 0), (1, 1), (2, 1)])),
            groups=groups,
            bias=bias,
        )
        shape = (draw(st.integers(1, 2)), groups * per_group, 7, draw(st.integers(6, 9)))
    activations = [nn.Identity(), nn.ReLU(), nn.ReLU6(), nn.Tanh()]
    model = nn.Sequential(layer, draw(st.sampled_from(activations))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, draw(st.sampled_from([0.1, 1.0])), generator=generator)
    shift = draw(st.sampled_from([0.0, 0.5]))
    data = [torch.rand(shape, generator=generator) - shift for _ in range(2)]
    observer = draw(st.sampled_from(["minmax", "percentile"]))
    return Quantized(fuseq.quantize(model, data[0], calibration=data, observer=observer), data)


def channel_errors(program: Program, data: Sequence[Tensor]) -> Tensor:
    """Squared error of a program of one layer and one activation, per channel, float64.

    Of the value that has the layer's grid, against the float layer clamped to the ends of that
    grid: of the layer itself, or of the activation that it absorbs.
    """
    table = program.quantization
    assert table is not None
    (node,) = program.graph.find_nodes(op="call_module")
    name = table.absorbed.get(node.name, node.name)
    grid = table.grids[name]
    ends = [float(grid.scale) * (q - int(grid.zero_point)) for q in (grid.qmin, grid.qmax)]
    total = torch.zeros(program.shape(node)[1], dtype=torch.float64)
    for batch in data:
        with torch.no_grad():
            wanted = program.get(node)(batch).double().clamp(*ends)
        actual = (execute(program, (batch,)).integers[name] - grid.zero_point) * grid.scale.double()
        total += (actual - wanted).square().transpose(0, 1).flatten(1).sum(1)
    return total
