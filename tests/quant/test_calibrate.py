import pytest
import torch
from torch import Tensor, nn

import fuseq
from fuseq import plugins
from fuseq.quant.calibrate import batches_of, used_interval
from fuseq.quant.structure import find_structure

PROFILE = plugins.load("backends", "onnx").profile


class Halves(nn.Module):
    """One half as it is, one cut; and the whole, rectified in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, z = self.conv(x), self.other(x)
        gate = torch.sigmoid(torch.clamp(y[:, 4:], -1.0, 1.0))
        return y[:, :4] * gate, torch.relu(z), torch.clamp(z, 0.0, 6.0)


def test_a_grid_covers_what_readers_tell_apart() -> None:
    torch.manual_seed(0)
    model = Halves().eval()
    with torch.no_grad():
        model.conv.weight[4:] *= 100
    batches = [torch.randn(2, 3, 8, 8) for _ in range(2)]
    program = fuseq.fuse(model, batches[0])
    structure = find_structure(program, PROFILE)
    intervals = {
        node.name: used_interval(node, structure)
        for node in program.graph.nodes
        if node.name in structure.group
    }
    names = {node.target: node.name for node in program.graph.nodes if node.op == "call_module"}
    assert intervals[names["conv"]] is None  # both slices are observed instead
    assert intervals[names["other"]] == (0.0, float("inf"))
    assert (-1.0, 1.0) in intervals.values()

    table = fuseq.quantize(program, calibration=batches).quantization
    assert table is not None
    with torch.no_grad():
        first = model.conv(torch.cat(batches))[:, :4].abs().max()
    grid = table.grids[names["conv"]]
    assert float(grid.scale) * 255 <= 2 * float(first.clamp_min(1.0)) * 1.001
    assert int(table.grids[names["other"]].zero_point) == 0


def test_a_program_of_one_batch_size_gets_larger_batches_in_parts() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    program = fuseq.capture(model, torch.rand(2, 3, 8, 8), dynamic=False)
    data = torch.rand(6, 3, 8, 8)
    parts = [x for (x,) in batches_of(program, [data, data[:2]])]
    assert torch.equal(torch.cat(parts), torch.cat([data, data[:2]]))
    assert {len(x) for x in parts} == {2}
    with pytest.raises(fuseq.FuseqError, match=r"batch 1 has shape \(3, 3, 8, 8\)"):
        list(batches_of(program, [data[:3]]))
