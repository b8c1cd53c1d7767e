"""Published networks, from module to checked file: every integer is the runtime's."""

from __future__ import annotations

import pytest
import torch

import fuseq
from tests.zoo.networks import NETWORKS
from tests.zoo.packages import create

LOWERED = (
    "timm:mobileone_s0",
    "timm:repvgg_a0",
    "timm:mobilenetv2_050",
    "timm:mobilenetv3_small_050",
    "timm:mobilenetv4_conv_small",
    "timm:resnet18",
    "timm:seresnet18",
    "timm:efficientnet_b0",
    "timm:repghostnet_050",
    "timm:ghostnetv3_050",
    "timm:lcnet_050",
    "timm:tinynet_e",
    "timm:regnetx_002",
    "timm:hgnetv2_b0",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:squeezenet1_1",
    "torchvision:mnasnet0_5",
    "torchvision:googlenet",
    "torchvision:resnet18",
    "torchvision:mobilenet_v3_small",
    "timm:repvit_m0_9",
    "timm:fastvit_t8",
    "torchvision:densenet121",
    "timm:convnext_atto",
    "timm:resnet10t",
    "timm:skresnet18",
    "torchvision:regnet_y_400mf",
    "timm:levit_128s",
    "torchvision:inception_v3",
)


@pytest.mark.parametrize("name", LOWERED)
def test_integers_equal_the_runtimes(name, tmp_path):
    network = NETWORKS[name]
    model = create(network)
    generator = torch.Generator().manual_seed(2)
    side = network.side
    image = torch.rand(1, 3, side, side, generator=generator)
    batches = [torch.rand(2, 3, side, side, generator=generator) for _ in range(2)]
    bundle = fuseq.lower(model, image, out=tmp_path / "out", calibration=batches)
    assert bundle.result is not None
    bundle.result.raise_for_status()
    parity = [check.metrics for check in bundle.result.checks if check.id.startswith("parity-")]
    assert parity
    assert [metrics["differing"] for metrics in parity] == [0] * len(parity)
    found = bundle.manifest["ops"]
    assert (found["conv_before"], found["conv_after"]) == network.conv
    assert (found["bn_before"], found["bn_after"]) == network.bn


TFLITE = (
    "timm:mobileone_s0",
    "timm:repvgg_a0",
    "timm:mobilenetv3_small_050",
    "timm:mobilenetv4_conv_small",
    "timm:seresnet18",
    "timm:efficientnet_b0",
    "timm:convnext_atto",
    "timm:levit_128s",
    "torchvision:shufflenet_v2_x0_5",
)


@pytest.mark.parametrize("name", TFLITE)
def test_integers_equal_both_kernel_sets(name, tmp_path):
    model, side = create(NETWORKS[name]), NETWORKS[name].side
    generator = torch.Generator().manual_seed(2)
    images = [torch.rand(1, 3, side, side, generator=generator) for _ in range(3)]
    bundle = fuseq.lower(
        model, images[0], backend="tflite", out=tmp_path / "out", calibration=images
    )
    assert bundle.result is not None
    bundle.result.raise_for_status()
    parity = [check.metrics for check in bundle.result.checks if check.id.startswith("parity-")]
    assert [metrics["differing"] for metrics in parity] == [0, 0]
    assert bundle.manifest["float_islands"] == []
