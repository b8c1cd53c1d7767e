"""How time and memory of fusion grow with the number of blocks.

    python -m benchmarks.growth

fuses networks of 10, 100 and 1000 blocks, each in a process of its own on one thread, and prints
CPU seconds after capture (search, kernels, region proofs, the promise of the pass and the reported
errors), CPU milliseconds for each convolution, the ratio of those to the row of 10 blocks, and the
peak memory of the process. The last row is MobileOne-s0 at 224 x 224.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import fuseq
from tests.networks.mobileone import MobileOneBlock
from tests.networks.randomize import randomized

CHANNELS = 8
BLOCKS = (10, 100, 1000)


class Branches(nn.Module):
    """The sum of some branches, and an activation."""

    def __init__(self, activation: nn.Module, *branches: nn.Module) -> None:
        super().__init__()
        self.branches, self.activation = nn.ModuleList(branches), activation

    def forward(self, x: Tensor) -> Any:
        """Map to map."""
        return self.activation(sum(branch(x) for branch in self.branches))


class Gates(nn.Module):
    """Parallel regions whose results are multiplied."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Map to map."""
        product = x
        for branch in self.branches:
            product = torch.sigmoid(product * branch(x))
        return product


def norm() -> nn.Module:
    """A batch norm that keeps sums of branches from growing with depth."""
    layer = nn.BatchNorm2d(CHANNELS)
    nn.init.constant_(layer.weight, 0.25)
    nn.init.normal_(layer.bias)
    return layer


def pointwise(count: int) -> nn.Module:
    """A sequence of 1x1 convolutions."""
    return nn.Sequential(*(nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(count)))


def block(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    """3x3, 1x1 and identity, each with its norm."""
    kernels = (
        nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, k, padding=k // 2, bias=False), norm())
        for k in (3, 1)
    )
    return Branches(activation(), *kernels, norm())


def repeated(block: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    """A number of blocks, one after the other."""
    return lambda count: nn.Sequential(*(block() for _ in range(count)))


KINDS: dict[str, Callable[[int], nn.Module]] = {
    "branches, ReLU": repeated(block),
    "branches, linear": repeated(lambda: block(nn.Identity)),
    "deep branches": repeated(lambda: Branches(nn.ReLU(), pointwise(5), pointwise(5))),
    "1x1 sequence": pointwise,
    "parallel regions": lambda count: Gates(*(block() for _ in range(count))),
}


def mobileone_s0(_: int) -> nn.Module:
    """The published widths and depths, with four branches."""
    layers: list[nn.Module] = [MobileOneBlock(3, 48, 3, stride=2, branches=1)]
    for (inputs, width), count in zip(
        pairwise((48, 48, 128, 256, 1024)), (2, 8, 10, 1), strict=True
    ):
        for index in range(count):
            own, stride = (width, 1) if index else (inputs, 2)
            layers.append(MobileOneBlock(own, own, 3, stride, groups=own, branches=4))
            layers.append(MobileOneBlock(own, width, 1, branches=4))
    return randomized(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()))


def measured(kind: str, count: int) -> tuple[int, int, float, float]:
    """Convolutions before and after, CPU seconds, peak MB; run in a fresh process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    build, shape = KINDS.get(kind, mobileone_s0), (1, CHANNELS, 16, 16)
    model = build(count).eval()
    program = fuseq.capture(model, torch.rand(shape if kind in KINDS else (1, 3, 224, 224)))
    start = time.process_time()
    report = fuseq.fuse(program).report
    seconds = time.process_time() - start
    assert report is not None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return report["ops"]["conv_before"], report["ops"]["conv_after"], seconds, peak


def main() -> None:
    """Print the table."""
    print(
        f"{'network':18}{'blocks':>7}{'convs':>13}{'CPU s':>8}{'ms/conv':>9}{'ratio':>7}{'MB':>7}"
    )
    for kind, counts in (*((kind, BLOCKS) for kind in KINDS), ("MobileOne-s0", (22,))):
        first = 0.0
        for count in counts:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                before, after, seconds, peak = pool.apply(measured, (kind, count))
            each = 1000 * seconds / before
            first = first or each
            print(
                f"{kind:18}{count:7}{f'{before} -> {after}':>13}"
                f"{seconds:8.2f}{each:9.1f}{each / first:7.2f}{peak:7.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
