"""Train QDR in float, then distilled from itself in the integers that ship (arXiv 2603.09624).

    python examples/qdr/train.py --out build/qdr
    python examples/qdr/train.py --out build/qdr --weights examples/qdr/weights.safetensors
    python examples/qdr/train.py --out build/photographs --steps 100000 --data hazy clean
    torchrun --standalone --nproc-per-node 2 examples/qdr/train.py --out build/qdr

Of the integers, three things are the paper's. The teacher is the same network in float. It teaches
at the bottleneck only: a decoder spreads its errors over the image. And the weight of distillation
is learned, so that it pulls as hard as reconstruction does.
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
from quality import measure
from training import Loss, joined, parallel, parser, recompute_statistics, say, train
from tuning import train_in_integers, train_on

from fuseq.qat import (
    Features,
    LearnableReweighting,
    QatModel,
    SelfTeacher,
    charbonnier,
    feature_loss,
)

PATCH = 64
RATE = 2e-3
BOTTLENECK = "bottleneck"


def reconstruction(network: nn.Module, degraded: Tensor, clean: Tensor) -> Tensor:
    """Return what training in float minimizes."""
    return charbonnier(network(degraded), clean)


def distilled(qat: QatModel) -> tuple[nn.Module, Loss]:
    """Give what training in integers trains and minimizes; call it before that begins."""
    teacher, balance = SelfTeacher(qat, BOTTLENECK), LearnableReweighting()

    def loss(student: nn.Module, degraded: Tensor, clean: Tensor) -> Tensor:
        restored, value = student(degraded)
        distillation = feature_loss(value, teacher(degraded))
        balanced: Tensor = balance(charbonnier(restored, clean), distillation, value)
        return balanced

    return Features(qat, BOTTLENECK), loss


def images(options: Namespace, rng: np.random.Generator) -> list[Pair]:
    """Read or generate pairs to train with; the last of those that are read are held out."""
    if options.data is None:
        return list(task.image_pairs(range(options.images)))
    return crops(folder_pairs(*options.data), options.images + HELD_OUT, task.SIZE, rng)


def main() -> None:
    """Read the command line, train, write the files, measure them."""
    options = parser(__doc__.splitlines()[0], steps=6000, tuning_steps=400)
    options.set_defaults(images=512)
    options.add_argument(
        "--data", nargs=2, type=Path, help="folder of degraded images, and of the clean ones"
    )
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    found = images(chosen, np.random.default_rng(chosen.seed))
    calibration, evaluate = list(task.calibration_data()), task.evaluate
    if chosen.data:
        found, held_out = hold_out(found)
        calibration = [torch.from_numpy(to_planes(degraded))[None] for degraded, _ in found[:16]]
        evaluate = lambda run: measure(run, held_out)  # noqa: E731

    with joined() as rank:
        drawn = draws(found, chosen.batch, PATCH, chosen.seed + 1_000 * rank)
        model = task.QDR()
        if chosen.weights:
            model.load_state_dict(load_file(chosen.weights))
        else:
            third = chosen.steps // 3
            say("training in float")
            train(parallel(model), next(drawn), reconstruction, third, RATE)
            recompute_statistics(model, next(drawn))
            # A batch of four mixes degradations otherwise than all images do.
            say("training in float, with the statistics of evaluation")
            rest, rate = chosen.steps - third, RATE / 2
            train(parallel(model), next(drawn), reconstruction, rest, rate, batch_statistics=False)
        model.eval()
        if rank == 0:
            save(model, chosen.out / "weights.safetensors")
        tuned = train_on(model, calibration, next(drawn), reconstruction, chosen.tuning_steps)
        trained = train_in_integers(
            model, calibration, drawn, distilled, chosen.tuning_steps, chosen.backends
        )
    if rank == 0:
        deploy(model, tuned, trained, calibration, evaluate, chosen.out)


if __name__ == "__main__":
    main()
