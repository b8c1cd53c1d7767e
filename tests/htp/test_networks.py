"""Whole networks for four chips: one graph, no float in it, and every op within one step."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch

import fuseq
from fuseq.backends.qnn import QnnBackend, host
from fuseq.user_code import load_function

MISSING = host.host_problem() or (None if host.wheel_version() else "no onnxruntime-qnn wheel here")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=str(MISSING))

NETWORKS = (
    "qatie",
    "qdr",
    "sisr",
    "mobileone",
    "mobileone_s0",
    "repvgg",
    "repvgg_a0",
    "repvgg_plus",
    "qarepvgg",
    "resnet",
    "mobilenet_v2",
    "mobilenet_v3",
    "lcnet_v2",
    "shufflenet_v2",
    "squeezenet",
    "efdn",
    "span",
    "unet",
)
CHIPS = ("sm8450", "sm8550", "sm8650", "sm8750")


PUBLISHED = {"mobileone_s0": ("mobileone", "s0"), "repvgg_a0": ("repvgg", "a0")}
"""Networks of full width, by module and function; the others are small ones of their family."""


def network(name: str) -> torch.nn.Module:
    if name == "sisr":
        return load_function("examples/sisr_x3/model.py", "get_model")[1]()
    module, function = PUBLISHED.get(name, (name, "small"))
    make: Callable[[], torch.nn.Module]
    make = getattr(importlib.import_module(f"tests.networks.{module}"), function)
    return make()


@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_op_is_within_one_step(name, chip, tmp_path):
    torch.manual_seed(0)
    image = (torch.rand(1, 3, 64, 64),)
    backend = QnnBackend(chips=(chip,))
    bundle = fuseq.lower(
        network(name).eval(), image, backend=backend, out=tmp_path / "out", calibration=[image]
    )
    assert bundle.result is not None
    bundle.result.raise_for_status()
    checks = {check.id: check.metrics for check in bundle.result.checks}
    assert checks[f"graph-{chip}"]["float_ops"] == 0
    assert checks[f"ops-{chip}-1x3x64x64"]["max_lsb"] <= 1
    assert checks[f"reload-{chip}"]["differing"] == 0
