"""What a captured program keeps of its model: form, names, sizes, sharing, sources."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq import ops
from fuseq.text import to_text


class SelfFusing(nn.Module):
    """A block that folds its branches inside forward when in eval, as several published ones do."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Conv2d(4, 4, 3, padding=1)
        self.small = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            y: Tensor = self.large(x) + self.small(x) + self.norm(x)
            return y
        mean, var = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert var is not None
        assert self.large.bias is not None
        assert self.small.bias is not None
        scale = self.norm.weight / torch.sqrt(var + self.norm.eps)
        kernel = self.large.weight + F.pad(self.small.weight, (1, 1, 1, 1))
        kernel = kernel + F.pad(torch.diag(scale)[:, :, None, None], (1, 1, 1, 1))
        bias = self.large.bias + self.small.bias + self.norm.bias - mean * scale
        return F.conv2d(x, kernel, bias, padding=1)


@pytest.mark.parametrize("front_end", ["fx", "export"])
@pytest.mark.parametrize("training", [True, False])
def test_blocks_that_fuse_themselves_keep_their_branches(front_end: str, training: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(SelfFusing(), nn.ReLU(), SelfFusing())
    for block in (model[0], model[2]):
        assert isinstance(block, SelfFusing)
        assert block.norm.running_mean is not None
        block.norm.running_mean.normal_()
    program = fuseq.capture(model.train(training), torch.randn(1, 4, 8, 8), front_end=front_end)
    assert (ops.count(program, "conv2d"), ops.count(program, "batch_norm")) == (4, 2)
    x = torch.randn(2, 4, 9, 7)
    torch.testing.assert_close(program(x), model.eval()(x))


class Inputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(
        self, image: Tensor, depth: Tensor, scale: float = 2.0, size: Any = None
    ) -> dict[str, Any]:
        y = self.conv(image) * scale
        return {"sum": y + depth, "parts": [y, (depth, y)]}


@pytest.mark.parametrize("front_end", ["fx", "export"])
def test_several_inputs_and_nested_outputs(front_end: str) -> None:
    image, depth = torch.randn(1, 3, 8, 8), torch.randn(1, 1, 8, 8)
    program = fuseq.capture(Inputs(), (image, depth), front_end=front_end)
    assert program.input_names == ("image", "depth")
    assert program.output_names == ("output_0", "output_1", "output_2", "output_3")
    assert len(program.outputs()) == 4
    result = program(image, depth)
    assert list(result) == ["sum", "parts"]
    assert torch.equal(result["parts"][1][0], depth)


def test_inputs_by_name() -> None:
    image, depth = torch.randn(1, 3, 8, 8), torch.randn(1, 1, 8, 8)
    program = fuseq.capture(Inputs(), {"depth": depth, "image": image})
    assert program.input_names == ("image", "depth")
    assert torch.equal(program(image, depth)["parts"][1][0], depth)
    with pytest.raises(fuseq.FuseqError, match=r"do not fit forward\(image, depth") as refused:
        fuseq.capture(Inputs(), {"dept": depth, "image": image})
    assert refused.value.code == "FQ005"


class Pyramid(nn.Module):
    def forward(self, large: Tensor, small: Tensor) -> Tensor:
        return large + F.interpolate(small, scale_factor=2)


def test_images_of_several_sizes_stay_free() -> None:
    program = fuseq.capture(Pyramid(), (torch.randn(1, 3, 16, 12), torch.randn(1, 3, 8, 6)))
    assert program.origin.dynamic == tuple((i, d) for i in (0, 1) for d in (0, 2, 3))
    assert program(torch.randn(2, 3, 20, 8), torch.randn(2, 3, 10, 4)).shape == (2, 3, 20, 8)


class FixedSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 3, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.position


def test_only_the_batch_is_free_where_the_model_fixes_the_size() -> None:
    program = fuseq.capture(FixedSize(), torch.randn(1, 3, 8, 8))
    assert program.origin.dynamic == ((0, 0),)


def test_model_and_inputs_are_not_edited() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1))

        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2)
            y: Tensor = self.norm(x)
            return y

    model, x = Writes(), torch.randn(1, 3, 8, 8)
    before, given = copy.deepcopy(model.state_dict()), x.clone()
    program = fuseq.capture(model, x)
    assert torch.equal(x, given)
    assert model.training
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    torch.testing.assert_close(program(x), model.eval()(x.clone()))


def test_hooks_that_compute_weights() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weighted = nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
    model = nn.Sequential(weighted, nn.utils.spectral_norm(nn.Conv2d(4, 4, 1)))
    program = fuseq.capture(model, torch.randn(1, 3, 8, 8))
    assert ops.count(program, "conv2d") == 2
    x = torch.randn(1, 3, 9, 9)
    torch.testing.assert_close(program(x), model.eval()(x))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(torch.relu(self.conv(x)))
        return y


def test_a_module_called_twice_is_two_modules_with_one_parameter() -> None:
    program = fuseq.capture(Shared(), torch.randn(1, 4, 8, 8))
    first, second = (program.get(node) for node in program.graph.nodes if node.op == "call_module")
    assert first is not second
    assert first.weight is second.weight
    assert len(list(program.module.parameters())) == 2


def test_names_scopes_and_sources() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())

        def forward(self, image: Tensor) -> Tensor:
            return self.body(image) * 0.5

    program = fuseq.capture(nn.ModuleDict({"block": Block()})["block"], torch.randn(1, 3, 4, 4))
    scaled = next(node for node in program.graph.nodes if ops.name_of(program, node) == "mul")
    location = scaled.meta["source"]
    assert location.code == "return self.body(image) * 0.5"
    assert program.source(scaled) == f"test_capture.py:{location.line}"
    conv = next(node for node in program.graph.nodes if node.op == "call_module")
    assert (conv.target, conv.meta["scope"]) == ("body.0", "body.0")
    text = """\
%image = input() : f32[1,3,4,4]
%body_0 = conv2d(%image) channels=3->4 kernel=1x1 : f32[1,4,4,4]
%relu = relu(%body_0) : f32[1,4,4,4]
%mul = mul(%relu, 0.5) : f32[1,4,4,4]
return %mul
"""
    assert to_text(program) == text
    assert f"%mul = mul(%relu, 0.5) : f32[1,4,4,4]  # {location}" in to_text(program, sources=True)


def test_capture_is_deterministic() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(SelfFusing(), nn.ReLU()), torch.randn(1, 4, 8, 8)
    first, second = fuseq.capture(model, x), fuseq.capture(model, x)
    assert to_text(first) == to_text(second)
    state = second.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.module.state_dict().items())


class TwiceWhere(nn.Module):
    """Doubles its output at some sizes."""

    def __init__(self, doubled: Callable[[int], bool]) -> None:
        super().__init__()
        self.conv, self.doubled = nn.Conv2d(3, 4, 3, padding=1), doubled

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y * 2.0 if self.doubled(x.shape[2]) else y


@pytest.mark.parametrize("doubled", [lambda n: n % 2 == 1, lambda n: n > 100])
def test_a_branch_on_the_size_fixes_the_size(doubled: Callable[[int], bool]) -> None:
    program = fuseq.capture(TwiceWhere(doubled), torch.rand(1, 3, 16, 16))
    assert program.origin.dynamic == ((0, 0),)
    assert "the program is valid at the captured image size only" in program.origin.notes


class PaddingToSame(nn.Module):
    """Strided convolutions padded as TensorFlow does, each by an amount that follows the size."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 3, stride=2) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            rows, columns = (max((math.ceil(n / 2) - 1) * 2 + 3 - n, 0) for n in x.shape[2:])
            x = layer(F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)))
        return x


@pytest.mark.parametrize(("depth", "free"), [(2, ((0, 0), (0, 2), (0, 3))), (5, ((0, 0),))])
def test_sizes_too_long_to_reason_about_are_fixed(
    depth: int, free: tuple[tuple[int, int], ...]
) -> None:
    torch.manual_seed(0)
    model = PaddingToSame(depth).eval()
    program = fuseq.capture(model, torch.rand(1, 3, 33, 64))
    assert (program.origin.front_end, program.origin.dynamic) == ("export", free)
    x = torch.rand(3, 3, 33, 64)
    torch.testing.assert_close(program(x), model(x))
