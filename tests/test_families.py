"""Blocks of each re-parameterization family, written after the papers, through `fuseq.fuse`.

`make zoo` does the same with networks of other packages. Golden counts: tests/zoo/networks.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fuseq
from tests.zoo.networks import NETWORKS
from tests.zoo.packages import create


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith("tests:")])
def test_fuses_as_far_as_the_paper_does(name):
    network = NETWORKS[name]
    report = fuseq.fuse(create(network), torch.rand(1, 3, 64, 64)).report
    assert report is not None
    counts = report["ops"]
    assert (counts["conv_before"], counts["conv_after"]) == network.conv
    assert (counts["bn_before"], counts["bn_after"]) == network.bn
    assert report["capture"] == network.front_end
    assert report["max_rel_error_f64"] <= 1e-12
    assert report["max_abs_error_f32"] <= report["float32_bound"]


def test_the_page_shows_these_structures():
    page = (Path(__file__).parents[1] / "docs" / "zoo.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    shown = {row[0].removeprefix("| "): tuple(row[2:5]) for row in rows if ":" in row[0]}
    arrow = "{} → {}".format
    assert {name: (cells[0].split()[0], *cells[1:]) for name, cells in shown.items()} == {
        network.name: (network.front_end, arrow(*network.conv), arrow(*network.bn))
        for network in NETWORKS.values()
    }
