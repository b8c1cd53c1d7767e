"""Corners of ops that test_tflite_forms does not reach: no integer apart on either kernel set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq import plugins
from fuseq.equivalence.integers import file_parity

BACKEND = plugins.load("backends", "tflite")


class Network(nn.Module):
    """A convolution, and a function of it that is tested."""

    def __init__(self, function: Callable[[Network, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.wide, self.deep = nn.Linear(16, 5), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.first(x))


OPS: dict[str, Callable[[Network, Tensor], Tensor]] = {
    "linear over columns": lambda m, x: m.wide(x),
    "linear over channels": lambda m, x: m.deep(x.flatten(2).transpose(1, 2)),
    "sum": lambda m, x: x + x[:, :1],
    "relu of a sum": lambda m, x: torch.relu(x - x[:, 1:2]),
    "difference of a value and itself": lambda m, x: x - x,
    "number less a value": lambda m, x: 1 - x,
    "scaled": lambda m, x: x * 0.3 + 0.1,
    "gate": lambda m, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "concat": lambda m, x: torch.cat((x, x * 0.001, 30 * torch.tanh(x)), 1),
    "dead relu": lambda m, x: torch.relu(x - 100) + x,
    "dead hard swish": lambda m, x: F.hardswish(x - 100) * x,
    "relu": lambda m, x: torch.relu(F.max_pool2d(x, 2)),
    "relu6": lambda m, x: F.relu6(F.max_pool2d(x, 2)),
    "clamp": lambda m, x: F.max_pool2d(x, 2).clamp(-0.3, 0.5),
    "clamp that leaves one value": lambda m, x: (x * 0.01).clamp(0.25, 0.75).clamp(-0.5, 2),
    "leaky relu of a small slope": lambda m, x: F.leaky_relu(x, 0.001),
    "softmax over columns": lambda m, x: x.softmax(3),
    "attention": lambda m, x: _attention(x.flatten(2).transpose(1, 2)),
    "average pool of counted padding": lambda m, x: F.avg_pool2d(x, 3, 1, 1),
    "adaptive average pool": lambda m, x: F.adaptive_avg_pool2d(x, (3, 4)),
    "mean": lambda m, x: x.mean((2, 3)),
    "mean over channels": lambda m, x: x.mean(1, keepdim=True),
    "mean over columns": lambda m, x: x.mean(3),
    "slice": lambda m, x: x[:, 1:6, ::2],
}


def _attention(x: Tensor) -> Tensor:
    return (x @ x.transpose(1, 2)).softmax(-1) @ x


@pytest.mark.parametrize("op", OPS)
def test_no_integer_differs(op: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    batches = [torch.randn(1, 3, 12, 16) for _ in range(2)]
    program = fuseq.capture(Network(OPS[op]).eval(), batches[0])
    bundle = fuseq.lower(program, backend=BACKEND(), out=tmp_path / "out", calibration=batches)
    assert bundle.result is not None
    checks = {check.id: check for check in bundle.result.checks}
    assert all(check.passed for check in checks.values()), bundle.result.first_divergence
    parity = [check.metrics for id, check in checks.items() if id.startswith("parity-")]
    assert len(parity) == 2
    assert not any(metrics["differing"] for metrics in parity)


@pytest.mark.parametrize("io", ["int8", "uint8", "float"])
def test_inputs_between_two_steps_are_rounded_by_the_file_or_not_at_all(
    io: str, tmp_path: Path
) -> None:
    """The kernel sets round halves differently, and a file of integers rounds none."""
    torch.manual_seed(0)
    halves = torch.arange(511).reshape(1, 1, 7, 73).expand(1, 3, 7, 73) / 2**5
    backend = BACKEND(io=io)
    network = Network(lambda m, x: x)
    program = fuseq.quantize(network, halves, calibration=[halves], target="tflite")
    assert program.quantization is not None
    assert float(program.quantization.grids["x"].scale) == 2**-4
    backend.lower(program, tmp_path)
    for arithmetic, runner in backend.runners(tmp_path / "model.int8.tflite").items():
        check, first = file_parity(program, runner, (halves,), arithmetic)
        assert check.metrics["differing"] == 0, first


def test_an_image_as_deep_as_wide_is_turned_for_the_caller(tmp_path: Path) -> None:
    """8 channels of 8 x 8: the shape is the same whether channels come first or last."""
    torch.manual_seed(0)
    x = torch.rand(1, 8, 8, 8)
    backend = plugins.load("backends", "tflite")(layout="nchw")
    bundle = fuseq.lower(
        nn.Conv2d(8, 8, 3, padding=1).eval(), x, backend=backend, out=tmp_path / "out",
        calibration=[x],
    )  # fmt: skip
    assert bundle.result is not None
    bundle.result.raise_for_status()


def test_a_bound_of_more_steps_than_32_bits_hold(tmp_path: Path) -> None:
    """LiteRT loads no RELU6 whose 6 overflows on the grid of the result."""
    torch.manual_seed(0)
    x = torch.rand(1, 3, 8, 8)
    conv = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.mul_(1e-5)
    bundle = fuseq.lower(
        nn.Sequential(conv, nn.ReLU6()).eval(), x, backend=BACKEND(), out=tmp_path / "out",
        calibration=[x], passes="fuse-affine,legalize,quantize{activation=int16}",
    )  # fmt: skip
    assert bundle.result is not None
    bundle.result.raise_for_status()
