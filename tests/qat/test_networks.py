"""Networks of every style: trained a little, what evaluation computes is what the file computes.

Every network of tests/networks, with ten million outputs: `make parity`.
"""

import pytest

from benchmarks.qat_parity import measured

NETWORKS = "gated kernel_space mobilenet_v3 repvgg repvgg_plus resnet squeezenet unet".split()


PHONE = "gated mobilenet_v3 repvgg shufflenet_v2 sesr unet examples/qatie examples/qdr".split()


@pytest.mark.parametrize(
    ("target", "name"), [*(("onnx", n) for n in NETWORKS), *(("tflite", n) for n in PHONE)]
)
def test_trained_integers_are_the_runtimes(target, name, tmp_path):
    found = measured(name, outputs=5000, out=tmp_path / "out", side=32, target=target)
    assert found.rounded == 0
    assert found.outputs + found.values > 50_000
    assert (found.differing, found.values_differing, found.largest_step) == (0, 0, 0)
    assert found.trained_apart == 0
