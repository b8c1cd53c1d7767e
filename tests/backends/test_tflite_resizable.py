"""Files whose height and width the caller chooses: no size of an image may lie in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq.backends.tflite import TfliteBackend

BACKEND = TfliteBackend(resizable=True)


class Network(nn.Module):
    """A convolution, and a function of it that is tested."""

    def __init__(self, function: Callable[[Network, Tensor], Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.first, self.one = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 1, 1)
        self.down, self.up = nn.Conv2d(8, 8, 3, 2, 1), nn.ConvTranspose2d(8, 8, 3, 2, 1, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(self, self.first(x))


FREE: dict[str, Callable[[Network, Tensor], Tensor | tuple[Tensor, ...]]] = {
    "stride": lambda m, x: m.down(x),
    "max pool": lambda m, x: F.max_pool2d(x, 3, 2, 1),
    "average pool": lambda m, x: F.avg_pool2d(x, 3, 2, 1),
    "slices": lambda m, x: torch.relu(x)[..., 1:-1, 2:],
    "slices that are fused into a convolution": lambda m, x: x[..., 1:-1, 2:],
    "every other row": lambda m, x: x[:, :, ::2, 1::2],
    "half the channels": lambda m, x: x.chunk(2, 1)[1],
    "a value twice": lambda m, x: (x, x),
    "one channel turned": lambda m, x: torch.relu(m.one(x).permute(0, 3, 1, 2)),
    "padding": lambda m, x: F.pad(F.pad(x, (1, 2, 0, 1)), (1, 1, 2, 2), mode="reflect"),
    "norm": lambda m, x: F.instance_norm(x) * x.mean((2, 3), keepdim=True),
    "pixel shuffle": lambda m, x: F.pixel_shuffle(x, 2),
}
SIZED: dict[str, Callable[[Network, Tensor], Tensor]] = {
    "conv_transpose2d": lambda m, x: m.up(x),
    "adaptive_avg_pool": lambda m, x: F.adaptive_avg_pool2d(x, 2),
    "hang": lambda m, x: F.max_pool2d(x, 3, 2, ceil_mode=True),
    "pixel_shuffle": lambda m, x: F.pixel_shuffle(torch.softmax(x, 1), 2),
}


def quantized(function: Callable[[Network, Tensor], Tensor | tuple[Tensor, ...]]) -> fuseq.Program:
    x = torch.rand(1, 3, 16, 16)
    return fuseq.quantize(Network(function).eval(), x, target="tflite", calibration=[x])


@pytest.mark.parametrize("name", FREE)
def test_a_file_takes_odd_sizes(name: str, tmp_path: Path) -> None:
    """Captured at an even size, at which a stride of two needs no padding at the end."""
    program = quantized(FREE[name])
    bundle = fuseq.lower(program, backend=BACKEND, out=tmp_path / "out")
    assert bundle.result is not None
    bundle.result.raise_for_status()
    file, image = bundle.file("int8"), torch.rand(1, 3, 17, 23)
    assert file is not None
    assert program.quantization is not None
    given = program.quantization.grids["x"].quantize(image).numpy().astype(np.int8)
    wanted = fuseq.execute(program, (image,)).integers
    for kernels, runner in BACKEND.runners(file).items():
        ours = fuseq.execute(program, (image,), arithmetic=kernels).integers
        for value, found in runner.integers(given).items():
            assert found.shape == wanted[value].shape, value
            assert np.array_equal(found, ours[value].numpy()), value


@pytest.mark.parametrize("name", SIZED)
def test_sizes_in_the_file_are_refused(name: str, tmp_path: Path) -> None:
    program = quantized(SIZED[name])
    with pytest.raises(fuseq.FuseqError, match=name) as caught:
        fuseq.lower(program, backend=BACKEND, out=tmp_path / "out")
    assert caught.value.code == "FQ501"
    bundle = fuseq.lower(program, backend="tflite", out=tmp_path / "fixed")
    assert bundle.result is not None
    bundle.result.raise_for_status()
