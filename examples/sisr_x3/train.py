"""Train the student: L1 loss, Adam, one-cycle learning rate (stage 1 of arXiv 2604.20291).

    python examples/sisr_x3/train.py                    # dead-leaves images, no data set needed
    python examples/sisr_x3/train.py --data DIV2K       # a folder laid out as DIV2K is

Starting point. With random weights a short training spends its time on learning to copy the image.
So stem and head start as bilinear interpolation, each on top of small random weights. Pixel (i, j)
of an enlarged 3x3 cell lies at (i - 1)/3, (j - 1)/3 from the cell's centre, hence the kernels

    k_ij = t_i t_j^T,    t_0 = (1, 2, 0)/3,    t_1 = (0, 3, 0)/3,    t_2 = (0, 2, 1)/3

The image travels in COPIES copies of each colour, enlarged by GAIN. An 8-bit tensor has one step
for all its channels, set by its widest; copies and gain keep that step small against the image.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from data import SCALE, Pair, batch, crop, div2k_pairs, generated_pairs
from model import HERE, SuperResolution, evaluate
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

COPIES, GAIN = 10, 4.0


@torch.no_grad()
def start_as_bilinear(model: SuperResolution, copies: int = COPIES, gain: float = GAIN) -> None:
    """Initialize ``model``, in place, as bilinear interpolation plus small random weights."""
    taps = torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 0.0], [0.0, 2.0, 1.0]]) / 3
    kernels = torch.einsum("iy,jx->ijyx", taps, taps).reshape(SCALE * SCALE, 3, 3)
    model.head.weight *= 0.1
    for channel in range(3 * copies):
        color = channel % 3
        model.stem.weight[channel, color, 1, 1] += gain
        rows = slice(SCALE * SCALE * color, SCALE * SCALE * (color + 1))
        model.head.weight[rows, channel] += kernels / (gain * copies)
    for bias in (model.stem.bias, model.head.bias):
        assert bias is not None
        bias.zero_()
    # n branches of variance 1/n add up to unit variance; the last block starts as a correction.
    for block in model.blocks:
        norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
        scale = 0.1 if block is model.blocks[-1] else len(norms) ** -0.5
        for norm in norms:
            norm.weight.fill_(scale)


def patches(
    pairs: Sequence[Pair], count: int, size: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Draw random low and high patches as tensors; see `data.batch`."""
    low, high = (torch.from_numpy(images) for images in batch(pairs, count, size, rng))
    # The whole network follows the layout of its input, and this one trains faster.
    return low.contiguous(memory_format=torch.channels_last), high


def train(
    model: SuperResolution,
    pairs: Sequence[Pair],
    steps: int,
    rate: float,
    count: int,
    size: int,
    rng: np.random.Generator,
) -> None:
    """Train ``model`` in place on ``steps`` batches of ``count`` low patches ``size`` wide."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    started, losses = time.monotonic(), []
    for step in range(1, steps + 1):
        low, high = patches(pairs, count, size, rng)
        loss = F.l1_loss(model(low), high)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 100 == 0 or step == steps:
            seconds = time.monotonic() - started
            print(f"step {step}/{steps}  L1 {np.mean(losses):.5f}  {seconds:.0f} s", flush=True)
            losses.clear()


@torch.no_grad()
def recompute_statistics(
    model: SuperResolution, pairs: Sequence[Pair], size: int, rng: np.random.Generator
) -> None:
    """Replace the running statistics, in place, by the average over 64 batches.

    The running ones are an exponential average that still remembers older weights.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    for _ in range(64):
        model(patches(pairs, 8, size, rng)[0])


def save(model: SuperResolution, path: Path) -> None:
    """Write the weights as safetensors, four-dimensional ones (the convolutions) in float16."""
    save_file(
        {
            name: (tensor.half() if tensor.dim() == 4 else tensor).contiguous()
            for name, tensor in model.state_dict().items()
        },
        path,
    )


def main() -> None:
    """Read the command line, train, save and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder in DIV2K layout; default: dead leaves")
    parser.add_argument("--pool", type=int, default=384, help="number of images held in memory")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--patch", type=int, default=48, help="width of a low-resolution patch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "weights.safetensors")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    found = div2k_pairs(arguments.data) if arguments.data else generated_pairs(itertools.count())
    # Photographs are large: keep one crop of each, so that the pool fits in memory.
    pairs = [crop(pair, 64, rng) for pair in itertools.islice(found, arguments.pool)]
    print(f"{len(pairs)} images", flush=True)

    model = SuperResolution()
    start_as_bilinear(model)
    train(model, pairs, arguments.steps, arguments.rate, arguments.batch, arguments.patch, rng)
    recompute_statistics(model, pairs, arguments.patch, rng)
    save(model, arguments.out)

    trained = SuperResolution().eval()
    trained.load_state_dict(load_file(arguments.out))
    with torch.inference_mode():
        result = evaluate(lambda image: trained(torch.from_numpy(image)).numpy())
    print(f"PSNR {result['psnr']:.3f} dB, bicubic {result['psnr_bicubic']:.3f} dB")


if __name__ == "__main__":
    main()
