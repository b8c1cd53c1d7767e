"""What follows training in float in every example: training on, in float and in integers.

Both begin with the same network and have as many batches: what integers give is told apart from
what any more training gives.
"""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn
from training import Batches, Loss, parallel, say, train, train_in_stages

import fuseq.qat
from fuseq.program import Program
from fuseq.qat import QatModel

RATE = 3e-4
FLOAT_PASSES = "fuse-affine,equalize"
"""Before training in integers. Batch norms have been recalibrated over training batches by then."""

Student = Callable[[QatModel], tuple[nn.Module, Loss]]
"""Of a network prepared for INT8: what is trained, it or a wrapper of it, and the loss of that."""


def train_on(
    model: nn.Module, calibration: Sequence[Tensor], batches: Batches, loss: Loss, steps: int
) -> Program:
    """Train a network on in float, in the form that training in integers begins with."""
    say("training on in float")
    program = fuseq.fuse(model, calibration[0], passes=FLOAT_PASSES, calibration=calibration)
    program.module.requires_grad_(True)
    train(parallel(program.module), batches, loss, steps, RATE)
    return program


def train_in_integers(
    model: nn.Module,
    calibration: Sequence[Tensor],
    draws: Iterator[Batches],
    student: Student,
    steps: int,
    backends: Sequence[str],
) -> dict[str, QatModel]:
    """Train a network in the integers of each backend.

    Args:
        model: As trained in float; it does not change.
        calibration: Inputs ``(1, 3, height, width)``.
        draws: Batches, for one backend after the other.
        student: Called before each training begins.
        steps: Number of batches.
        backends: As the command line spells them.

    Returns:
        What was trained, by backend.
    """
    trained = {}
    for backend in backends:
        say(f"training in the integers of {backend}")
        trained[backend] = fuseq.qat.prepare(
            model,
            calibration[0],
            target=backend.partition("{")[0],
            calibration=calibration,
            passes=FLOAT_PASSES,
        )
        network, loss = student(trained[backend])
        train_in_stages(parallel(network), next(draws), loss, steps, RATE)
    return trained
