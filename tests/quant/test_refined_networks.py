"""Whole networks with the aids: closer to the float network, and the file computes the same."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq.program import Program
from fuseq.user_code import load_function
from tests.networks import mobilenet_v2, unet

SISR = Path(__file__).parents[2] / "examples" / "sisr_x3" / "model.py"


def super_resolution() -> tuple[nn.Module, list[Tensor], Tensor]:
    module, get_model = load_function(str(SISR), "get_model")
    data: Any = module._data()
    images = [low for low, _ in data.generated_pairs(islice(module.HELD_OUT_SEEDS, 4))]
    held_out = torch.stack([torch.from_numpy(data.images.to_planes(image)) for image in images])
    return get_model(), list(islice(module.calibration_data(), 4)), held_out


def of_tests(module: Any) -> tuple[nn.Module, list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(16, 3, 16, 16, generator=generator)
    images = F.interpolate(coarse, scale_factor=4, mode="bilinear")
    return module.small(), list(torch.split(images[:8], 1)), images[8:]


@pytest.mark.parametrize(
    ("case", "gain"),
    [
        # Measured: 6.4, 8.5 and 1.8 dB; benchmarks/ptq.py has more of it.
        (super_resolution, 4.0),
        (lambda: of_tests(mobilenet_v2), 4.0),
        (lambda: of_tests(unet), 1.0),
    ],
    ids=["sisr_x3", "mobilenet_v2", "unet"],
)
def test_aids_bring_a_network_closer_and_its_file_agrees(
    case: Any, gain: float, tmp_path: Path
) -> None:
    model, calibration, held_out = case()
    fused = fuseq.fuse(model, calibration[0], prove=False)
    levels = []
    for number, aids in enumerate(("", ",round-weights,correct-bias")):
        bundle = fuseq.lower(
            fused,
            backend="onnx",
            out=tmp_path / str(number),
            calibration=calibration,
            passes=f"legalize,quantize{aids}",
        )
        assert bundle.result is not None
        bundle.result.raise_for_status()
        parity = [check for check in bundle.result.checks if check.id.startswith("parity-")]
        assert sum(check.metrics["total"] for check in parity) > 10**5
        assert not any(check.metrics["differing"] for check in parity)
        assert bundle.program is not None
        levels.append(sqnr(bundle.program, held_out))
    assert levels[1] > levels[0] + gain


def sqnr(program: Program, x: Tensor) -> float:
    with torch.no_grad():
        expected = program.module(x)
        noise = (program(x) - expected).square().sum()
    return float(10 * (expected.square().sum() / noise).log10())
