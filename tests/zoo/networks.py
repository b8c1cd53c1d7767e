"""Networks with re-parameterizable blocks, and plain ones, with what fusion leaves of them.

Counts are (before, after). `own` is what the network's own hand-written fusion leaves: measured
where the package has one, the paper's deployed form where the network is written here after it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Network:
    """A network and the structure of its fused form.

    Attributes:
        name: as `tests.zoo.packages.create` takes it.
        conv: two-dimensional convolutions before and after.
        bn: batch norms before and after.
        own: convolutions and batch norms that the network's own method leaves; None without one.
        side: of the square image.
        front_end: which of the two recorded it.
    """

    name: str
    conv: tuple[int, int]
    bn: tuple[int, int] = (0, 0)
    own: tuple[int, int] | None = None
    side: int = 96
    front_end: str = "fx"


PLAIN = "No branches to merge"

FAMILIES: dict[str, tuple[Network, ...]] = {
    "MobileOne": (
        Network("timm:mobileone_s0", (191, 43), (226, 0), (43, 0)),
        Network("timm:mobileone_s4", (89, 67), (99, 0), (67, 0)),
        Network("birder:mobileone_s0", (191, 43), (226, 0), (43, 0)),
        Network("tests:mobileone", (31, 17), (27, 0), (17, 0)),
    ),
    "RepVGG": (
        Network("timm:repvgg_a0", (44, 22), (61, 0), (22, 0)),
        Network("timm:repvgg_b1g4", (56, 28), (79, 0), (28, 0)),
        Network("tests:repvgg", (12, 6), (15, 0), (6, 0)),
    ),
    "RepVGG with squeeze-excite": (
        Network("tests:repvgg_plus", (24, 18), (15, 0), (18, 0)),
        Network("tests:repvgg_plus.d2se", (24, 18), (15, 0), (18, 0)),
    ),
    "QARepVGG": (Network("tests:qarepvgg", (10, 5), (10, 0), (5, 5)),),
    "ACNet": (
        Network("birder:acb_resnet_v1_18", (52, 20), (52, 0), (20, 4)),
        Network("tests:asymmetric", (9, 3), (9, 0), (3, 0)),
    ),
    "Diverse Branch Block": (
        Network("birder:dbb_resnet_v1_18", (84, 20), (100, 0), (20, 4), front_end="export"),
        Network("birder:dbb_se_resnet_v1_18", (100, 36), (100, 0), (36, 4), front_end="export"),
        Network("tests:diverse_branch", (10, 2), (12, 0), (2, 0), front_end="export"),
    ),
    "ECBSR": (Network("tests:ecbsr", (36, 4), own=(4, 0), front_end="export"),),
    "EDBB (EFDN)": (Network("tests:efdn", (43, 16), own=(16, 0), front_end="export"),),
    "PlainUSR": (Network("tests:plain_usr", (30, 12), own=(12, 0)),),
    "OREPA": (Network("tests:orepa", (4, 4), (4, 0), (4, 0)),),
    "RefConv, DO-Conv": (Network("tests:kernel_space", (6, 6), (6, 0), (6, 6), 96, "export"),),
    "YOLO RepConv": (Network("tests:yolo", (35, 25), (40, 0), (25, 0), front_end="export"),),
    "RepSR": (Network("tests:repsr", (18, 6), (8, 0), (6, 0)),),
    "SESR": (Network("tests:sesr", (10, 5), own=(5, 0)),),
    "SPAN": (
        Network("spandrel:SPAN", (82, 22), own=(22, 0), side=48, front_end="export"),
        Network("resselt:SPANPlus", (82, 22), own=(22, 0), side=48, front_end="export"),
        Network("resselt:RTMoSR", (66, 14), own=(14, 0), side=48, front_end="export"),
        Network("resselt:SMoSR", (82, 22), own=(22, 0), side=48),
        Network("tests:span", (46, 13), own=(13, 0)),
    ),
    "ExpandNet": (Network("tests:expandnet", (12, 4), (4, 0), (4, 4)),),
    "RepLKNet, UniRepLKNet": (
        Network("birder:unireplknet_a", (91, 41), (84, 0), (41, 0), 224),
        Network("tests:replknet", (13, 11), (17, 0), (11, 13)),
        Network("tests:replknet.dilated", (17, 7), (15, 0), (7, 1)),
    ),
    "FastViT (RepMixer)": (
        Network("timm:fastvit_t8", (68, 52), (70, 0), (52, 10), 224),
        Network("timm:fastvit_sa12", (75, 59), (74, 0), (59, 14), 224),
        Network("tests:fastvit", (23, 17), (25, 0), (17, 3)),
    ),
    "RepViT": (
        Network("timm:repvit_m0_9", (126, 103), (108, 0), (103, 0), 224),
        Network("birder:repvit_m0_6", (84, 70), (72, 0), (70, 0), 224),
    ),
    "RepGhost": (Network("timm:repghostnet_050", (95, 95), (112, 0), (95, 48)),),
    "GhostNetV3": (Network("timm:ghostnetv3_050", (309, 136), (326, 0), (137, 54)),),
    "LCNet": (
        Network("tests:lcnet_v2", (25, 15), (21, 0), (15, 6)),
        Network("timm:lcnet_050", (32, 32), (27, 0)),
    ),
    "LeViT": (
        Network("timm:levit_128s", (4, 4), (52, 0), (4, 0), 224),
        Network("tests:levit", (4, 4), (13, 0), (4, 0)),
    ),
    "EfficientViT, TinyViT, SHViT": (
        Network("timm:efficientvit_m0", (116, 116), (113, 0), (116, 0), 224, "export"),
        Network("timm:tiny_vit_5m_224", (27, 27), (27, 0), (27, 0), 224, "export"),
        Network("timm:shvit_s1", (77, 77), (74, 0), (77, 0), 224),
    ),
    "MicroViT": (Network("birder:microvit_v2_s1", (90, 67), (69, 0), (67, 0), 224),),
    "Transposed convolutions": (Network("tests:decoder", (4, 4), (7, 0)),),
    "Nearest pixel, then convolution": (
        Network("tests:decoder.nearest", (8, 6), (7, 0)),
        Network("tests:rep_unet", (11, 6), (10, 0), (6, 0), front_end="export"),
    ),
    "HGNetV2": (Network("timm:hgnetv2_b0", (43, 43), (42, 0)),),
    PLAIN: (
        Network("timm:resnet18", (20, 20), (20, 0)),
        Network("timm:resnet10t", (14, 14), (14, 0)),
        Network("timm:seresnet18", (36, 36), (20, 0)),
        Network("timm:skresnet18", (44, 44), (36, 0)),
        Network("timm:mobilenetv2_050", (52, 52), (52, 0)),
        Network("timm:mobilenetv3_small_050", (53, 53), (34, 0)),
        Network("timm:mobilenetv4_conv_small", (46, 46), (46, 0)),
        Network("timm:efficientnet_b0", (81, 81), (49, 0)),
        Network("timm:tinynet_e", (51, 51), (31, 0)),
        Network("timm:regnetx_002", (44, 44), (44, 0)),
        Network("timm:convnext_atto", (40, 40)),
        Network("timm:fasternet_t0", (44, 44), (17, 0)),
        Network("timm:starnet_s1", (80, 80), (36, 0)),
        Network("timm:swiftformer_xs", (61, 61), (26, 0), side=224),
        Network("timm:efficientformerv2_s0", (83, 83), (75, 0), side=224),
        Network("spandrel:NAFNet", (36, 36), side=48),
        Network("birder:cpubone_n", (31, 31), (19, 0), side=224),
        Network("torchvision:resnet18", (20, 20), (20, 0)),
        Network("torchvision:mobilenet_v3_small", (52, 51), (34, 0)),
        Network("torchvision:mnasnet0_5", (52, 51), (52, 0)),
        Network("torchvision:shufflenet_v2_x0_5", (56, 56), (56, 0)),
        Network("torchvision:squeezenet1_1", (26, 26)),
        Network("torchvision:googlenet", (57, 57), (57, 0)),
        Network("torchvision:inception_v3", (94, 94), (94, 0)),
        Network("torchvision:regnet_y_400mf", (85, 85), (53, 0)),
        Network("torchvision:densenet121", (120, 120), (121, 62)),
    ),
}

NETWORKS = {network.name: network for family in FAMILIES.values() for network in family}
