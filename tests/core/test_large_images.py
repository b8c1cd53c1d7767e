"""Files for one large size: all that a small image shows as well is shown on one."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq.backends.onnx import OnnxBackend
from fuseq.errors import FuseqError
from fuseq.large_images import for_any_image

FRAME = (torch.rand(1, 3, 400, 520, generator=torch.Generator().manual_seed(0)),)
PATCH = torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(1))
BACKEND = OnnxBackend(dynamic=False)


SIZES: set[int] = set()
"""Rows and columns of the images that a model was run on."""


class Net(nn.Module):
    """Two branches and an activation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.narrow = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(4, 8, 3, 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x.shape[2], int):
            SIZES.update(x.shape[2:])
        return F.pixel_shuffle(self.last(F.relu(self.wide(x) + self.narrow(x))), 2)


class OfSize(Net):
    """Follows the size of its image."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.reshape(*y.shape[:2], y.shape[2] // 2, -1)


def test_a_file_for_a_large_image(tmp_path) -> None:
    SIZES.clear()
    bundle = fuseq.lower(Net(), FRAME, backend=BACKEND, out=tmp_path / "out", calibration=[PATCH])
    assert bundle.result is not None
    bundle.result.raise_for_status()
    checks = {check.id: check for check in bundle.result.checks}
    assert checks["parity-1x3x144x136"].metrics["total"] > 0  # 400 % 128 + 128
    assert checks["float-file"].passed
    assert checks["golden"].metrics == {"differing": 0, "total": 2 * 400 * 520, "max_lsb": 0}
    assert 0 < max(SIZES) < 384
    file = onnx.load(str(bundle.file("int8")))
    assert [d.dim_value for d in file.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 400, 520]
    assert bundle.program is not None
    assert torch.equal(bundle.program.example_inputs[0], FRAME[0])
    assert bundle.manifest["inputs"][0]["shape"] == [1, 3, 400, 520]
    assert bundle.manifest["macs"]["after"] == 400 * 520 * 27 * 4 + 200 * 260 * 36 * 8
    assert [check["id"] for check in bundle.manifest["checks"]][-1] == "golden"
    assert fuseq.check(bundle).passed


def test_the_same_bytes(tmp_path) -> None:
    for name in ("a", "b"):
        fuseq.lower(Net(), FRAME, backend=BACKEND, out=tmp_path / name, calibration=[PATCH])
    a, b = ((tmp_path / name / "fuseq.json").read_text() for name in ("a", "b"))
    assert a == b


def test_a_quantized_program_gets_a_large_image(tmp_path) -> None:
    program = fuseq.quantize(Net(), PATCH, calibration=[PATCH])
    small = for_any_image(program, FRAME)
    assert small is not None
    assert small.example_inputs[0].shape == (1, 3, 144, 136)
    bundle = fuseq.lower(program, FRAME, backend=BACKEND, out=tmp_path / "out")
    assert bundle.result is not None
    bundle.result.raise_for_status()
    assert np.load(bundle.path / "golden.npz")["input.x"].shape == (1, 3, 400, 520)
    assert json.loads((bundle.path / "fuseq.json").read_text())["inputs"][0]["free"] == []


@pytest.mark.parametrize("frame", [(PATCH,), FRAME], ids=["small", "large"])
def test_what_follows_its_size_is_captured_at_it(frame, tmp_path) -> None:
    assert for_any_image(OfSize(), frame) is None
    with pytest.raises(FuseqError, match="FQ006"):
        fuseq.lower(
            OfSize(), frame, backend=BACKEND, out=tmp_path / "out", calibration=[PATCH[:, :, :8]]
        )


def test_inputs_that_the_program_does_not_take(tmp_path) -> None:
    program = fuseq.quantize(Net(), PATCH, calibration=[PATCH])
    with pytest.raises(FuseqError, match=r"FQ005.*1x2x400x520"):
        fuseq.lower(program, FRAME[0][:, :2], backend=BACKEND, out=tmp_path / "out")
