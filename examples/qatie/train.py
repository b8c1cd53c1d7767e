"""Train QATIE in float, then in the integers that ship, and write the files (arXiv 2604.21743).

    python examples/qatie/train.py --out build/qatie
    python examples/qatie/train.py --out build/qatie --weights examples/qatie/weights.safetensors
    python examples/qatie/train.py --out build/dped --channels 32 --steps 100000 \
        --data dped/iphone/training_data/iphone dped/iphone/training_data/canon
    torchrun --standalone --nproc-per-node 2 examples/qatie/train.py --out build/qatie

Concats and instance norms are trained as they ship: every value that a file has is an integer here.
"""

import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "common"))  # what all examples share

import model as task
from deployment import deploy, save
from images import HELD_OUT, Pair, crops, draws, folder_pairs, hold_out, to_planes
from losses import enhancement_loss
from quality import measure
from training import joined, parallel, parser, say, train
from tuning import train_in_integers, train_on

PATCH = 64
RATE = 2e-3


def loss(network: nn.Module, phone: Tensor, camera: Tensor) -> Tensor:
    """Return what all trainings minimize."""
    return enhancement_loss(network(phone), camera)


def photographs(options: Namespace, rng: np.random.Generator) -> list[Pair]:
    """Read or generate pairs to train with; the last of those that are read are held out."""
    if options.data is None:
        return list(task.photograph_pairs(range(options.images)))
    return crops(folder_pairs(*options.data), options.images + HELD_OUT, task.SIZE, rng)


def main() -> None:
    """Read the command line, train, write the files, measure them."""
    options = parser(__doc__.splitlines()[0], steps=1500, tuning_steps=150)
    options.add_argument("--channels", type=int, default=16, help="32 is the paper's")
    options.add_argument(
        "--data", nargs=2, type=Path, help="folder of the phone's images, and of the camera's"
    )
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    found = photographs(chosen, np.random.default_rng(chosen.seed))
    calibration, evaluate = list(task.calibration_data()), task.evaluate
    if chosen.data:
        found, held_out = hold_out(found)
        calibration = [torch.from_numpy(to_planes(phone))[None] for phone, _ in found[:16]]
        evaluate = lambda run: measure(run, held_out)  # noqa: E731

    with joined() as rank:
        drawn = draws(found, chosen.batch, PATCH, chosen.seed + 1_000 * rank)
        model = task.QATIE(chosen.channels)
        if chosen.weights:
            model.load_state_dict(load_file(chosen.weights))
        else:
            say("training in float")
            train(parallel(model), next(drawn), loss, chosen.steps, RATE)
        model.eval()
        if rank == 0:
            save(model, chosen.out / "weights.safetensors")
        tuned = train_on(model, calibration, next(drawn), loss, chosen.tuning_steps)
        trained = train_in_integers(
            model, calibration, drawn, lambda qat: (qat, loss), chosen.tuning_steps, chosen.backends
        )
    if rank == 0:
        deploy(model, tuned, trained, calibration, evaluate, chosen.out)


if __name__ == "__main__":
    main()
