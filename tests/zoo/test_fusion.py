"""Networks of many families through `fuseq.fuse`, beside their own hand-written fusion."""

from __future__ import annotations

import pytest
import torch

import fuseq
from fuseq import ops
from tests.zoo.networks import FAMILIES, NETWORKS, PLAIN
from tests.zoo.own_fusion import own_fusion
from tests.zoo.packages import create


def image(side: int) -> torch.Tensor:
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(2))


def left_without_reason(program: fuseq.Program) -> list[str]:
    """Batch norms that are still there though no refusal names them."""
    assert program.report is not None
    named = {refusal[key] for refusal in program.report["refused"] for key in ("node", "exit")}
    norms = ("batch_norm", "batch_norm1d")
    return [
        node.name
        for node in program.graph.nodes
        if ops.name_of(program, node) in norms and node.name not in named
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_fuses_as_far_as_by_hand(name):
    network = NETWORKS[name]
    model = create(network)
    program = fuseq.fuse(model, image(network.side))
    report = program.report
    assert report is not None
    counts = report["ops"]
    assert (counts["conv_before"], counts["conv_after"]) == network.conv
    assert (counts["bn_before"], counts["bn_after"]) == network.bn
    assert report["capture"] == network.front_end
    assert report["max_rel_error_f64"] <= 1e-12
    assert report["max_abs_error_f32"] <= report["float32_bound"]
    assert left_without_reason(program) == []
    if network.own is not None:
        assert counts["conv_after"] <= network.own[0]


@pytest.mark.parametrize("name", [n for n in NETWORKS if not n.startswith("tests:")])
def test_what_their_own_fusion_leaves(name):
    network = NETWORKS[name]
    own = own_fusion(create(network), image(network.side))
    assert (own and (own.conv, own.bn)) == network.own


def test_families_and_networks_are_many():
    families = {name: family for name, family in FAMILIES.items() if name != PLAIN}
    assert len(families) >= 14
    assert sum(len(family) for family in families.values()) >= 40
    assert sum(network.front_end == "export" for network in NETWORKS.values()) >= 8
