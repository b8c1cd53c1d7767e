"""What backends would say without data, and what fusion leaves between nonlinear operations."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuseq import capture, rewrite
from fuseq.affine.islands import islands
from fuseq.affine.refusal import Refusal
from fuseq.large_images import capture_shapes
from fuseq.outlook import Outlook, outlook
from fuseq.pass_spec import parse_passes
from fuseq.plugins import load
from fuseq.program import Program


class Net(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), *layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def fused(model: nn.Module) -> Program:
    (step,) = parse_passes("fuse-affine")
    return rewrite.apply(step, capture(model, torch.rand(1, 3, 16, 16)), prove=False)


def of_onnx(model: nn.Module, **options: bool) -> Outlook:
    return outlook(fused(model), load("backends", "onnx")(**options))


def test_a_network_of_integer_kernels() -> None:
    found = of_onnx(Net(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)))
    assert (found.backend, found.refusals, found.unmet, found.floats) == ("onnx", (), (), ())
    assert found.integers == 3


def test_what_stays_float_says_why() -> None:
    found = of_onnx(Net(nn.ELU(), nn.Conv2d(4, 4, 1), nn.GELU()))
    assert [(n.op, n.reason) for n in found.floats] == [
        ("foreign:elu", "no integer kernel for elu"),
        ("gelu", "no integer kernel for gelu"),
    ]
    assert all(node.source for node in found.floats)


def test_what_a_backend_refuses() -> None:
    found = of_onnx(Net(nn.AdaptiveAvgPool2d((3, 5))))
    (refusal,) = found.refusals
    assert "adaptive pool" in refusal.reason
    assert of_onnx(Net(nn.AdaptiveAvgPool2d((3, 5))), dynamic=False).refusals == ()


def test_what_a_pass_would_not_find() -> None:
    class Unfolded(nn.Module):
        """A batch norm over other channels than those of the convolution."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x))

    captured = capture(Unfolded(), torch.rand(1, 3, 16, 16))
    backend = load("backends", "onnx")()
    object.__setattr__(backend, "pipeline", "legalize,quantize")
    (sentence,) = outlook(captured, backend).unmet
    assert sentence.startswith("quantize: 1 are left, first `norm`")


def test_islands_are_what_fusion_would_have_wanted() -> None:
    model = Net(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    program = fused(model)
    (found,) = islands(program, program.details(Refusal))
    assert found.nodes == ("layers_2", "layers_3")
    assert [refusal.code for refusal in found.refusals] == ["ring"]


def test_a_large_image_is_recorded_small() -> None:
    sizes: list[tuple[int, ...]] = []

    class Recorded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            if isinstance(x.shape[2], int):
                sizes.append(tuple(x.shape[2:]))
            return F.relu(self.conv(x))

    x = torch.rand(1, 3, 720, 1280)
    program = capture_shapes(Recorded(), (x,))
    assert program.shape(program.outputs()[0]) == (1, 4, 359, 639)
    assert program.example_inputs[0] is x
    assert max(max(size) for size in sizes) < 384


def test_a_large_image_of_a_model_for_one_size() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Flatten(), nn.Linear(398 * 30, 2))
    program = capture_shapes(model, (torch.rand(1, 3, 400, 32),))
    assert program.shape(program.outputs()[0]) == (1, 2)
