"""Networks of every style: trained a little, what evaluation computes is what the file computes.

Every network of tests/networks, with ten million outputs: `make parity`.
"""

import pytest

from benchmarks.qat_parity import measured

NETWORKS = "gated kernel_space mobilenet_v3 repvgg repvgg_plus resnet squeezenet unet".split()


@pytest.mark.parametrize("name", NETWORKS)
def test_trained_integers_are_the_runtimes(name, tmp_path):
    found = measured(name, outputs=5000, out=tmp_path / "out", side=32)
    assert found.rounded == 0
    assert found.outputs + found.values > 50_000
    assert (found.differing, found.values_differing, found.largest_step) == (0, 0, 0)
    assert found.trained_apart == 0
