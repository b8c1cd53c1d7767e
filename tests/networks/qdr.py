"""The restoration network of examples/qdr, at half of its width."""

from pathlib import Path

from torch import nn

from fuseq.user_code import load_function
from tests.networks.randomize import randomized

EXAMPLE = Path(__file__).parents[2] / "examples" / "qdr" / "model.py"


def small() -> nn.Module:
    _, network = load_function(str(EXAMPLE), "QDR")
    return randomized(network(channels=8, blocks=2))
