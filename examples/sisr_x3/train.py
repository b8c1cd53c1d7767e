"""Train the student in the three stages of arXiv 2604.20291, and write the files.

    python examples/sisr_x3/train.py --out build/sisr
    python examples/sisr_x3/train.py --out build/sisr --weights examples/sisr_x3/weights.safetensors
    python examples/sisr_x3/train.py --out build/div2k --steps 100000 --data DIV2K
    torchrun --standalone --nproc-per-node 2 examples/sisr_x3/train.py --out build/sisr

1. L1 loss. The committed weights are those after this stage, and `--weights` begins behind it.
2. Fidelity: Charbonnier and DCT losses, and distillation from a teacher, trusted where it is right.
3. Deploy before QAT: batch norms recalibrated over 64 batches, branches fused, then trained in the
   integers of the file with the loss of stage 2, in a curriculum that first observes ranges (a
   fifth), then freezes them (two fifths), then the grids of the weights too. Weights are clipped to
   their grids after each step.
"""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from bilinear_start import start_as_bilinear
from data import div2k_pairs, generated_pairs
from model import SuperResolution, calibration_data, evaluate
from safetensors.torch import load_file
from teacher import get_teacher
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[1] / "common"))  # what all examples share

from deployment import deploy, save
from images import HELD_OUT, Pair, crops, draws, hold_out, to_planes
from quality import measure
from training import Loss, joined, parallel, parser, recompute_statistics, say, train
from tuning import train_in_integers, train_on

from fuseq.qat import FidelityLoss

PATCH, LOW_SIZE = 48, 64
RATE, FIDELITY_RATE = 2e-3, 5e-4


def l1(network: nn.Module, low: Tensor, high: Tensor) -> Tensor:
    """Return the loss of stage 1."""
    return F.l1_loss(network(low), high)


def fidelity(teacher: nn.Module) -> Loss:
    """Create the loss of stages 2 and 3; any module that maps low images to high ones teaches."""
    combined = FidelityLoss()

    def loss(network: nn.Module, low: Tensor, high: Tensor) -> Tensor:
        with torch.no_grad():
            taught = teacher(low)
        return combined(network(low), high, taught)

    return loss


def pairs(options: Namespace, rng: np.random.Generator) -> list[Pair]:
    """Read or generate pairs to train with; the last of those that are read are held out."""
    if options.data is None:
        return list(generated_pairs(range(options.images)))
    return crops(div2k_pairs(options.data), options.images + HELD_OUT, LOW_SIZE, rng)


def main() -> None:
    """Read the command line, train, write the files, measure them."""
    options = parser(__doc__.splitlines()[0], steps=2500, tuning_steps=150)
    options.add_argument("--fidelity-steps", type=int, default=100, help="of stage 2")
    options.add_argument("--data", type=Path, help="a folder laid out as DIV2K is")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    found = pairs(chosen, np.random.default_rng(chosen.seed))
    calibration, measured = list(calibration_data()), evaluate
    if chosen.data:
        found, held_out = hold_out(found)
        calibration = [torch.from_numpy(to_planes(low))[None] for low, _ in found[:32]]
        measured = lambda run: measure(run, held_out, shave=3)  # noqa: E731

    with joined() as rank:
        drawn = draws(found, chosen.batch, PATCH, chosen.seed + 1_000 * rank)
        model = SuperResolution()
        if chosen.weights:
            model.load_state_dict(load_file(chosen.weights))
        else:
            say("stage 1")
            start_as_bilinear(model)
            train(parallel(model), next(drawn), l1, chosen.steps, RATE)
            recompute_statistics(model, next(drawn))
            if rank == 0:
                save(model, chosen.out / "weights.safetensors")
        say("stage 2")
        loss = fidelity(get_teacher())
        train(parallel(model), next(drawn), loss, chosen.fidelity_steps, FIDELITY_RATE)
        recompute_statistics(model, next(drawn))
        say("stage 3")
        tuned = train_on(model, calibration, next(drawn), loss, chosen.tuning_steps)
        trained = train_in_integers(
            model, calibration, drawn, lambda qat: (qat, loss), chosen.tuning_steps, chosen.backends
        )
    if rank == 0:
        save(model, chosen.out / "fidelity.safetensors")
        deploy(model, tuned, trained, calibration, measured, chosen.out)


if __name__ == "__main__":
    main()
