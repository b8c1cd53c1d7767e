"""Models in other precisions, and casts inside them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fuseq
from fuseq import ops


class Casting(nn.Module):
    def __init__(self, how: Any) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(self.how(x)))
        return y


def autocast(x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch.einsum("bchw,cd->bdhw", x, torch.eye(4))
    return y.float()


@pytest.mark.parametrize("front_end", ["fx", "export"])
@pytest.mark.parametrize(
    ("how", "dtype"),
    [
        (lambda x: x.half().float(), "float16"),
        (lambda x: x.bfloat16().to(torch.float32), "bfloat16"),
        (lambda x: x.to(torch.float16).type(torch.float32), "float16"),
        (lambda x: (x.double() * 2).float(), None),
        (lambda x: x.type_as(x.double()).float(), None),
        (lambda x: (x > 0.5).float(), None),
        (lambda x: (x > 0.5).int() * x, None),
    ],
)
def test_casts_between_floats_are_left_out(how: Any, dtype: str | None, front_end: str) -> None:
    torch.manual_seed(0)
    model, x = Casting(how).eval(), torch.rand(1, 4, 8, 8)
    program = fuseq.capture(model, x, front_end=front_end)
    tolerance = 2e-2 if dtype else 1e-5
    torch.testing.assert_close(program(x), model(x), rtol=tolerance, atol=tolerance)
    note = f"casts to {dtype} are left out: the program keeps its precision"
    assert program.origin.notes == ((note,) if dtype else ())
    report = fuseq.fuse(program).report
    assert report is not None
    assert report["ops"]["bn_after"] == 0
    assert report["max_rel_error_f64"] <= 1e-12


def test_autocast_inside_forward() -> None:
    torch.manual_seed(0)
    model, x = Casting(autocast).eval(), torch.rand(1, 4, 8, 8)
    program = fuseq.capture(model, x)
    assert any("bfloat16" in note for note in program.origin.notes)
    torch.testing.assert_close(program(x), model(x), rtol=3e-2, atol=3e-2)
    report = fuseq.fuse(program).report
    assert report is not None
    assert report["max_rel_error_f64"] <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("front_end", ["fx", "export"])
def test_a_narrow_model_is_captured_in_float32(dtype: torch.dtype, front_end: str) -> None:
    torch.manual_seed(0)
    model, x = Casting(lambda x: x).eval().to(dtype), torch.rand(1, 4, 8, 8).to(dtype)
    program = fuseq.fuse(model, x, front_end=front_end)
    assert next(model.parameters()).dtype == dtype
    name = str(dtype).removeprefix("torch.")
    assert program.origin.notes == (f"the model is in {name}: captured in float32",)
    torch.testing.assert_close(program(x.float()), model.float()(x.float()))


@pytest.mark.parametrize("front_end", ["fx", "export"])
def test_a_double_model_is_fused_in_double(front_end: str) -> None:
    torch.manual_seed(0)
    model, x = Casting(lambda x: x * 3).eval().double(), torch.rand(1, 4, 8, 8).double()
    program = fuseq.fuse(model, x, front_end=front_end)
    assert program.report is not None
    assert program.report["max_abs_error_f32"] < 1e-5
    torch.testing.assert_close(program(x), model(x), rtol=1e-13, atol=1e-13)


class KernelFromParameters(nn.Module):
    """A kernel that is an einsum of parameters, scaled by attention on a parameter (OREPA)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.rand(8, 4))
        self.outer = nn.Parameter(torch.rand(4, 8, 3, 3))
        self.query = nn.Parameter(torch.rand(1, 4, 1, 1))
        self.attention = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sigmoid())
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.einsum("oihw,ij->ojhw", self.outer, self.inner)
        kernel = kernel * self.attention(self.query)
        y: Tensor = self.norm(nn.functional.conv2d(x, kernel, padding=1))
        return y


@pytest.mark.parametrize("front_end", ["fx", "export"])
def test_kernels_made_of_parameters_become_constants(front_end: str) -> None:
    torch.manual_seed(0)
    model, x = KernelFromParameters().eval(), torch.rand(1, 4, 8, 8)
    program = fuseq.fuse(model, x, front_end=front_end)
    assert [ops.name_of(program, n) for n in program.graph.nodes] == ["input", "conv2d", "output"]
    assert program.report is not None
    assert program.report["max_rel_error_f64"] <= 1e-12
    wide = fuseq.fuse(model.double(), x.double(), front_end=front_end)
    torch.testing.assert_close(wide(x.double()), model(x.double()), rtol=1e-13, atol=1e-13)


class Grid(nn.Module):
    """Tensors made from sizes, with torch's default precision."""

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(x.shape[0], 1, x.shape[2], x.shape[3])
        frame = torch.cat([x.new_zeros(x.shape[0], 1, *x.shape[2:]), ones, torch.zeros_like(x)], 1)
        return frame + torch.full_like(x[:, :1], 0.5) + torch.full((x.shape[3],), 2.0)


def test_tensors_made_from_sizes_follow_the_precision() -> None:
    model, x = Grid(), torch.rand(1, 4, 8, 8)
    program = fuseq.capture(model, x)
    other = torch.rand(2, 4, 9, 7)
    assert torch.equal(program(other), model(other))
    assert program.twin(torch.float64)(other.double()).dtype == torch.float64
