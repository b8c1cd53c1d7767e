"""Train QDR in float, then distilled from itself in the integers that ship (arXiv 2603.09624).

    python examples/qdr/train.py --out build/qdr
    python examples/qdr/train.py --out build/qdr --weights examples/qdr/weights.safetensors
    python examples/qdr/train.py --out build/photographs --steps 100000 --data hazy clean
    torchrun --standalone --nproc-per-node 2 examples/qdr/train.py --out build/qdr

Of the integers, three things are the paper's. The teacher is the same network in float. It teaches
at the bottleneck only: a decoder spreads its errors over the image. And the weight of distillation
is learned, so that it pulls as hard as reconstruction does.
"""

import itertools
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "common"))  # what all examples share

import model as task
from deployment import deploy, fused, prepared, save
from images import HELD_OUT, Pair, batches, crops, folder_pairs, hold_out, to_planes
from quality import measure
from training import (
    Batches,
    Loss,
    joined,
    parallel,
    parser,
    recompute_statistics,
    say,
    train,
    train_in_stages,
)

from fuseq.qat import (
    Features,
    LearnableReweighting,
    QatModel,
    SelfTeacher,
    charbonnier,
    feature_loss,
)

PATCH = 64
RATE, TUNING_RATE = 2e-3, 3e-4
BOTTLENECK = "bottleneck"


def restoration_loss(network: nn.Module, degraded: Tensor, clean: Tensor) -> Tensor:
    """Return what training in float minimizes."""
    return charbonnier(network(degraded), clean)


def distillation_loss(qat: QatModel) -> Loss:
    """Create the loss of training in integers; call it before that begins."""
    teacher, balance = SelfTeacher(qat, BOTTLENECK), LearnableReweighting()

    def loss(student: nn.Module, degraded: Tensor, clean: Tensor) -> Tensor:
        restored, value = student(degraded)
        distillation = feature_loss(value, teacher(degraded))
        balanced: Tensor = balance(charbonnier(restored, clean), distillation, value)
        return balanced

    return loss


def quantization_aware(
    model: nn.Module, backend: str, calibration: list[Tensor], drawn: Batches, steps: int
) -> QatModel:
    """Train a network in the integers of a backend."""
    qat = prepared(model, backend, calibration)
    train_in_stages(
        parallel(Features(qat, BOTTLENECK)), drawn, distillation_loss(qat), steps, TUNING_RATE
    )
    return qat


def images(options: Namespace, rng: np.random.Generator) -> list[Pair]:
    """Read or generate pairs to train with; the last of those that are read are held out."""
    if options.data is None:
        return list(task.image_pairs(range(options.images)))
    return crops(folder_pairs(*options.data), options.images + HELD_OUT, task.SIZE, rng)


def main() -> None:
    """Read the command line, train, write the files, measure them."""
    options = parser(__doc__.splitlines()[0], steps=1500, tuning_steps=150)
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
        seeds = itertools.count(chosen.seed + 1_000 * rank)

        def drawn() -> Batches:
            """Other batches each time, and on each rank."""
            return batches(found, chosen.batch, PATCH, np.random.default_rng(next(seeds)))

        model = task.QDR()
        if chosen.weights:
            model.load_state_dict(load_file(chosen.weights))
        else:
            say("training in float")
            train(parallel(model), drawn(), restoration_loss, chosen.steps, RATE)
            recompute_statistics(model, drawn())
            # A batch of four mixes degradations otherwise than all images do.
            say("training in float, with the statistics of evaluation")
            steps, rate = chosen.steps // 3, RATE / 4
            train(parallel(model), drawn(), restoration_loss, steps, rate, batch_statistics=False)
        model.eval()
        if rank == 0:
            save(model, chosen.out / "weights.safetensors")
        say("training on in float")
        tuned = fused(model, calibration)
        train(parallel(tuned.module), drawn(), restoration_loss, chosen.tuning_steps, TUNING_RATE)
        trained = {}
        for backend in chosen.backends:
            say(f"training in the integers of {backend}")
            trained[backend] = quantization_aware(
                model, backend, calibration, drawn(), chosen.tuning_steps
            )
    if rank == 0:
        deploy(model, tuned, trained, calibration, evaluate, chosen.out)


if __name__ == "__main__":
    main()
