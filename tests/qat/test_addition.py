"""Sums in training: the integers of the arithmetic, looked up or not, in any memory layout."""

import pytest
import torch
from torch import Tensor

from fuseq.qat.addition import PAIRS, added
from fuseq.qat.gradients import limits
from fuseq.quant.arithmetic import ARITHMETICS
from fuseq.quant.grid import LIMITS, Grid

SHAPES = {
    "looked up": ((2, 16, 48, 48), (2, 16, 48, 48)),
    "too small for a table": ((1, 3, 8, 8), (1, 3, 8, 8)),
    "broadcast": ((2, 16, 48, 48), (2, 16, 1, 1)),
    "broadcast both ways": ((2, 16, 48, 1), (1, 16, 1, 64)),
}
LAYOUTS = {
    "contiguous": (torch.contiguous_format, torch.contiguous_format),
    "channels last": (torch.channels_last, torch.channels_last),
    "mixed": (torch.contiguous_format, torch.channels_last),
}


def grid(scale: float, zero_point: int, dtype: str) -> Grid:
    return Grid(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), dtype)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, dtype) for name in sorted(ARITHMETICS) for dtype in ("uint8", "int8")),
        ("ort", "uint16"),
        ("ideal", "int16"),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", SHAPES)
def test_integers_and_gradients(name: str, dtype: str, layout: str, case: str) -> None:
    low = LIMITS[dtype][0]
    grids = (
        grid(0.021, low + 100, dtype),
        grid(0.05, low, dtype),
        grid(0.03, low + 30, dtype),
    )
    generator = torch.Generator().manual_seed(0)
    operands = [
        torch.randint(g.qmin, g.qmax + 1, shape, generator=generator, dtype=torch.int32)
        for g, shape in zip(grids, SHAPES[case], strict=False)
    ]
    a, b = (
        (q - g.zero_point).float().contiguous(memory_format=layout).requires_grad_()
        for q, g, layout in zip(operands, grids, LAYOUTS[layout], strict=False)
    )
    assert a.numel() > PAIRS or case != "looked up"
    arithmetic = ARITHMETICS[name].between("add", *grids)
    extremes: list[Tensor] = []
    ours = added(a, b, grids, arithmetic, extremes)

    expected = arithmetic.add(operands[0], grids[0], operands[1], grids[1], grids[2])
    assert torch.equal(ours, (expected - grids[2].zero_point).float())

    v = (a.detach() * grids[0].scale + b.detach() * grids[1].scale) / grids[2].scale
    torch.testing.assert_close(
        extremes[0], torch.stack(v.aminmax()) * grids[2].scale, rtol=0, atol=float(grids[2].scale)
    )

    # What two roundings may disagree on is left out.
    smallest, largest = limits(grids[2])
    clear = ((v - smallest).abs() > 1) & ((v - largest).abs() > 1)
    upstream = torch.randn(ours.shape, generator=generator) * clear
    ours.backward(upstream)
    passed = torch.where((v > smallest) & (v < largest), upstream, 0.0)
    for x, g in zip((a, b), grids, strict=False):
        theirs = (passed * g.scale / grids[2].scale).sum_to_size(x.shape)
        assert x.grad is not None
        torch.testing.assert_close(x.grad, theirs, rtol=1e-4, atol=1e-4)
    assert 0 < int((passed != 0).sum()) < int(clear.sum())
