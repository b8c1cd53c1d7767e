"""Published networks, from module to checked file; `make zoo` installs and runs them.

Their own re-parameterization, where they have one, must not leave fewer layers than ours.
"""

from __future__ import annotations

import pytest
import torch

import fuseq
from tests.zoo.published import Structure, create, own_fusion

SIDES = {"fastvit_t8": 224, "repvit_m0_9": 224, "levit_128s": 224}
"""Image sides where 96 is too small for the network."""

THEIRS_LEAVES_FEWER = {"levit_128s", "repvit_m0_9"}
"""Batch norms on vectors (`flatten`, then `BatchNorm1d`) are no region of ours."""

NETWORKS: dict[str, Structure] = {
    "mobileone_s0": Structure(191, 43, 226),
    "repvgg_a0": Structure(44, 22, 61),
    "mobilenetv2_050": Structure(52, 52, 52),
    "mobilenetv3_small_050": Structure(53, 53, 34),
    "mobilenetv4_conv_small": Structure(46, 46, 46),
    "resnet18": Structure(20, 20, 20),
    "seresnet18": Structure(36, 36, 20),
    "efficientnet_b0": Structure(81, 81, 49),
    "repghostnet_050": Structure(95, 95, 112),
    "ghostnetv3_050": Structure(309, 136, 326),
    "lcnet_050": Structure(32, 32, 27),
    "tinynet_e": Structure(51, 51, 31),
    "regnetx_002": Structure(44, 44, 44),
    "hgnetv2_b0": Structure(43, 43, 42),
    "torchvision:shufflenet_v2_x0_5": Structure(56, 56, 56),
    "torchvision:squeezenet1_1": Structure(26, 26, 0),
    "torchvision:mnasnet0_5": Structure(52, 51, 52),
    "torchvision:googlenet": Structure(57, 57, 57),
    "torchvision:resnet18": Structure(20, 20, 20),
    "torchvision:mobilenet_v3_small": Structure(52, 51, 34),
    "repvit_m0_9": Structure(126, 103, 108, 2),
    "fastvit_t8": Structure(68, 52, 70),
    "torchvision:densenet121": Structure(120, 120, 121, 62),
    "convnext_atto": Structure(40, 40, 0),
    "resnet10t": Structure(14, 14, 14),
    "skresnet18": Structure(44, 44, 36),
    "torchvision:regnet_y_400mf": Structure(85, 85, 53),
    "levit_128s": Structure(4, 4, 52, 48),
    "torchvision:inception_v3": Structure(94, 94, 94),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_integers_equal_the_runtimes(name, tmp_path):
    model = create(name)
    generator = torch.Generator().manual_seed(2)
    side = SIDES.get(name, 96)
    image = torch.rand(1, 3, side, side, generator=generator)
    batches = [torch.rand(2, 3, side, side, generator=generator) for _ in range(2)]
    bundle = fuseq.lower(model, image, out=tmp_path / "out", calibration=batches)
    assert bundle.result is not None
    bundle.result.raise_for_status()
    parity = [check.metrics for check in bundle.result.checks if check.id.startswith("parity-")]
    assert parity
    assert [metrics["differing"] for metrics in parity] == [0] * len(parity)
    found = bundle.manifest["ops"]
    assert Structure(**found) == NETWORKS[name]
    own = own_fusion(model)
    if own is not None:
        conv, bn = own
        fewer = found["conv_after"] > conv or found["bn_after"] > bn
        assert fewer == (name in THEIRS_LEAVES_FEWER)
