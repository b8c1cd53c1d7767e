"""Train the student with each kind of block, and tell what INT8 costs it (arXiv 2604.20291).

    python examples/sisr_x3/ablation.py --out build/ablation

Each is trained in float alike, with L1 loss; its batch norms are recalibrated; it is fused and
quantized after training, and the TFLite file is measured in LiteRT.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from bilinear_start import start_as_bilinear
from data import generated_pairs
from model import BLOCKS, SuperResolution, calibration_data, evaluate
from train import PATCH, RATE, l1

sys.path.append(str(Path(__file__).parents[1] / "common"))  # what all examples share

from deployment import figures, lowered
from images import batches
from training import parser, recompute_statistics, train


def main() -> None:
    """Train, lower and measure; keep the figures in ``results.json``."""
    chosen = parser(__doc__.splitlines()[0], steps=300, tuning_steps=0).parse_args()
    torch.set_num_threads(chosen.threads)
    found, calibration = list(generated_pairs(range(chosen.images))), list(calibration_data())
    results = {}
    for block in BLOCKS:
        print(block, flush=True)
        torch.manual_seed(chosen.seed)
        drawn = batches(found, chosen.batch, PATCH, np.random.default_rng(chosen.seed))
        model = SuperResolution(block=block)
        start_as_bilinear(model)
        train(model, drawn, l1, chosen.steps, RATE)
        recompute_statistics(model, drawn)
        bundle = lowered(model, "tflite", chosen.out / block, calibration, evaluate)
        results[block] = dict(zip(("float", "ptq"), figures(bundle), strict=True))
        print(results[block], flush=True)
    (chosen.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
