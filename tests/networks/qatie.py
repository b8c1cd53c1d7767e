"""The image enhancement network of examples/qatie, at a quarter of its width."""

from pathlib import Path

from torch import nn

from fuseq.user_code import load_function
from tests.networks.randomize import randomized

EXAMPLE = Path(__file__).parents[2] / "examples" / "qatie" / "model.py"


def small() -> nn.Module:
    _, network = load_function(str(EXAMPLE), "QATIE")
    return randomized(network(channels=8), gain=0.5)  # most outputs lie within the clamp
