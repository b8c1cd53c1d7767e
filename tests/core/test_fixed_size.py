"""Programs for the captured size only: no size arithmetic is left, and files can be written."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import Tensor, nn

import fuseq
from fuseq import ops
from fuseq.backends.onnx import OnnxBackend
from fuseq.fixed_size import FIXED, at_size

IMAGE = torch.rand(1, 4, 16, 12)


class Tokens(nn.Module):
    """Windows, a grid of positions and a pool: shapes that follow the image's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = self.conv(x).reshape(b, c, h // 2, 2, w // 2, 2)
        y = y.permute(0, 1, 3, 5, 2, 4).reshape(b, c * 4, h // 2, w // 2)
        rows = torch.arange(h // 2, dtype=x.dtype)[None, None, :, None]
        y = y + rows.expand(1, 1, h // 2, w // 2)
        return nn.functional.adaptive_avg_pool2d(y, (2, 3))


def shape_nodes(program: fuseq.Program) -> list[str]:
    return [n.name for n in program.graph.nodes if ops.name_of(program, n) == "shape"]


@pytest.mark.parametrize("front_end", ["fx", "export"])
def test_captured_at_one_size(front_end: str) -> None:
    torch.manual_seed(0)
    model = Tokens().eval()
    program = fuseq.capture(model, IMAGE, front_end=front_end, dynamic=False)
    assert (program.origin.dynamic, program.origin.notes) == ((), (FIXED,))
    assert shape_nodes(program) == []
    found = {ops.name_of(program, node) for node in program.graph.nodes}
    assert not any(name.startswith("foreign:") for name in found)
    x = torch.rand_like(IMAGE)
    torch.testing.assert_close(program(x), model(x))


def test_a_program_is_fixed_later() -> None:
    torch.manual_seed(0)
    model = Tokens().eval()
    program = fuseq.capture(model, IMAGE)
    assert shape_nodes(program)
    fixed = at_size(program)
    assert shape_nodes(program)
    assert (fixed.origin.dynamic, fixed.origin.notes, shape_nodes(fixed)) == ((), (FIXED,), [])
    torch.testing.assert_close(fixed(IMAGE), model(IMAGE))
    assert at_size(fixed).origin.notes == (FIXED,)


class Halves(nn.Module):
    """Takes one image size, of any batch."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.rand(1, 4, 16, 12))

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.position
        return y.reshape(y.shape[0] * 2, -1, y.shape[2], y.shape[3] // 2)


def test_sizes_that_cannot_change_are_numbers() -> None:
    program = fuseq.capture(Halves(), IMAGE, front_end="fx")
    assert program.origin.dynamic == ((0, 0),)
    (reshape,) = (n for n in program.graph.nodes if ops.name_of(program, n) == "reshape")
    assert reshape.kwargs["shape"][2:] == (16, 6)
    assert program(torch.rand(3, 4, 16, 12)).shape == (6, 4, 16, 6)


def test_a_file_of_one_size(tmp_path) -> None:
    torch.manual_seed(0)
    model, backend = Tokens().eval(), OnnxBackend(dynamic=False)
    for given in (model, fuseq.capture(model, IMAGE)):
        bundle = fuseq.lower(
            given, IMAGE, backend=backend, out=tmp_path / type(given).__name__, calibration=[IMAGE]
        )
        assert bundle.result is not None
        bundle.result.raise_for_status()
        file = onnx.load(bundle.path / "model.int8.qdq.onnx")
        assert not {"Shape", "Gather", "Range"} & {node.op_type for node in file.graph.node}
