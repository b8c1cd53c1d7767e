"""The teacher: a wider network that begins as the trained student and is trained on.

    python examples/sisr_x3/teacher.py --out build/teacher

A wide network knows nothing after the few minutes that fit here. So it starts as what the student
computes (Chen, Goodfellow & Shlens, ICLR 2016): the student, fused, fills the first channels of
every layer; the others start at random, and nothing of them reaches the first ones yet,

    W = [ W_student  0 ]        head: W = [ W_student  0 ]
        [  random      ]
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import torch
from data import generated_pairs
from model import HERE, SuperResolution, evaluate, example_inputs, get_model
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[1] / "common"))  # what all examples share

from deployment import save
from images import batches
from training import parser, train

import fuseq
from fuseq import ops

RATE = 5e-4


class Teacher(nn.Module):
    """The fused student's layers, wider."""

    def __init__(self, channels: int = 48, layers: int = 8) -> None:
        """Create the network with PyTorch's default initialization."""
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in range(layers)
        )
        self.head = nn.Conv2d(channels, 27, 3, padding=1)
        self.shuffle = nn.PixelShuffle(3)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, 3, H, W)`` in 0..1 to ``(N, 3, 3H, 3W)``, close to 0..1."""
        features = y = self.stem(x)
        for layer in self.body:
            y = torch.relu(layer(y))
        output: Tensor = self.shuffle(self.head(y + features))
        return output


def get_teacher() -> nn.Module:
    """Return the teacher with the weights committed beside this file."""
    model = Teacher()
    model.load_state_dict(load_file(HERE / "teacher.safetensors"))
    return model.eval()


@torch.no_grad()
def widened(student: SuperResolution) -> Teacher:
    """Create a teacher that computes what a trained student computes."""
    fused = fuseq.fuse(student, example_inputs())
    convolutions = [n for n in fused.graph.nodes if ops.name_of(fused, n) == "conv2d"]
    teacher = Teacher()
    for wide, node in zip((teacher.stem, *teacher.body, teacher.head), convolutions, strict=True):
        narrow = fused.get(node)
        assert isinstance(narrow, nn.Conv2d)
        outputs, inputs = narrow.weight.shape[:2]
        wide.weight[:outputs] = 0
        wide.weight[:outputs, :inputs] = narrow.weight
        wide.bias[:outputs] = narrow.bias
    return teacher


def loss(network: nn.Module, low: Tensor, high: Tensor) -> Tensor:
    """Return what the teacher minimizes."""
    return F.l1_loss(network(low), high)


def main() -> None:
    """Train on, save and measure."""
    options = parser(__doc__.splitlines()[0], steps=700, tuning_steps=0)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    student = get_model()
    assert isinstance(student, SuperResolution)
    teacher = widened(student)
    found = list(itertools.islice(generated_pairs(itertools.count()), chosen.images))
    drawn = batches(found, chosen.batch, 48, np.random.default_rng(chosen.seed))
    train(teacher, drawn, loss, chosen.steps, RATE)
    save(teacher, chosen.out / "teacher.safetensors")
    for name, network in (("student", student), ("teacher", teacher)):
        with torch.inference_mode():
            result = evaluate(lambda x, network=network: network(torch.from_numpy(x)).numpy())  # type: ignore[misc]
        print(name, result)


if __name__ == "__main__":
    main()
