"""Convolutions by int8 instructions: the integers of float32, in a byte an element."""

import os
import subprocess
import sys
from unittest.mock import patch

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

import fuseq
from fuseq.qat import int8_convolution

needs_instructions = pytest.mark.skipif(
    not int8_convolution.available(), reason="this CPU has no VNNI, so float32 is used throughout"
)


@needs_instructions
@settings(max_examples=40, deadline=None)
@given(
    channels=st.tuples(st.integers(int8_convolution.CHANNELS, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 3), st.integers(5, 40), st.integers(5, 40)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    smallest=st.sampled_from((0, -3, -128, -255)),
    biased=st.booleans(),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_sums_are_those_of_float64(
    channels, size, kernel, stride, padding, dilation, smallest, biased, channels_last, seed
):
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=generator).float()

    x = integers(smallest, smallest + 255, size[0], channels[0], *size[1:])
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    weight = integers(-127, 127, channels[1], channels[0], *kernel)
    bias = integers(-(2**20), 2**20, channels[1]) if biased else None
    geometry = (stride, padding, dilation)

    q = int8_convolution.to_bytes(x, smallest)
    total = int8_convolution.convolve(q, smallest, weight, bias, *geometry)

    wide = None if bias is None else bias.double()
    assert torch.equal(total.double(), F.conv2d(x.double(), weight.double(), wide, *geometry))
    assert torch.equal(int8_convolution.from_bytes(q, smallest), x)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, 1),
        nn.Tanh(),
        nn.Conv2d(16, 8, 1, bias=False),
    )


def step(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    y = model(x)
    torch.sin(7 * y).sum().backward()
    return y.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@needs_instructions
@pytest.mark.parametrize("channels_last", [False, True])
def test_training_is_as_in_float32(channels_last):
    x = torch.randn(2, 3, 48, 64)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    model = fuseq.qat.prepare(network(), x, calibration=[x])
    model.stage(observing=False, weight_grids_frozen=False)
    with patch.object(int8_convolution, "convolve", wraps=int8_convolution.convolve) as used:
        y, gradients = step(model, x)
    assert used.call_count == 2  # of three: the first one has few channels
    with patch.object(int8_convolution, "available", return_value=False):
        float_y, float_gradients = step(model, x)
    assert torch.equal(y, float_y)
    assert len(gradients) == 5
    for ours, theirs in zip(gradients, float_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_instructions_that_saturate_are_not_used():
    """oneDNN without VNNI: what a CPU without it would give, or one that is kept from it."""
    code = "from fuseq.qat import int8_convolution; print(int8_convolution.available())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert result.stdout.strip() == "False"
