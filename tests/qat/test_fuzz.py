"""Random networks, trained a little: training, evaluation and ONNX Runtime in every integer.

A long run is `python -m tests.qat.test_fuzz FIRST LAST`; a seed that fails belongs below.
"""

import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fuseq import plugins
from tests.qat.deployment import deployed, prepared, train
from tests.quant.random_networks import SIZES, RandomNetwork

SEEDS = range(14)


def fuzzed(seed: int, out: Path) -> tuple[int, int]:
    """One random network, prepared with a random choice of options."""
    draw = random.Random(seed)
    network = RandomNetwork(seed, draw.choice((3, 6, 10))).eval()
    generator = torch.Generator().manual_seed(seed)
    batches: list[tuple[Tensor, ...]] = [
        (network.inputs((2, *SIZES[0][1:]), generator),) for _ in range(2)
    ]
    options: dict[str, Any] = {
        "observer": draw.choice(("minmax", "percentile", "mse")),
        "learn_scales": draw.random() < 0.3,
        "per_channel": draw.random() < 0.8,
    }
    model = prepared(network, batches, **options)
    train(model, batches)
    backend = plugins.load("backends", "onnx")(dynamic=draw.random() < 0.5, simplify=False)
    return deployed(model, batches, out / str(seed), backend)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_networks_ship_what_they_trained(seed: int, tmp_path: Path) -> None:
    integers, _ = fuzzed(seed, tmp_path)
    assert integers > 100


def main(first: int, last: int) -> None:
    """Run seeds and print what fails."""
    compared = [0, 0]
    for seed in range(first, last):
        try:
            with tempfile.TemporaryDirectory() as folder:
                compared = [
                    a + b for a, b in zip(compared, fuzzed(seed, Path(folder)), strict=True)
                ]
        except Exception as error:
            first_line = (str(error) or type(error).__name__).splitlines()[0]
            print(seed, type(error).__name__, first_line, flush=True)
    print(f"{last - first} networks, {compared[0]} integers, {compared[1]} outputs end to end")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
