"""Random networks, lowered, against ONNX Runtime: every integer of every value, at two sizes.

A long run is `python -m tests.quant.test_parity_fuzz FIRST LAST`; a seed that fails belongs below.
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq import plugins, rewrite
from fuseq.backend import Backend
from fuseq.equivalence import Check
from fuseq.program import Program
from fuseq.quant.structure import find_structure
from tests.quant.random_networks import SIZES, RandomNetwork

OnnxBackend = plugins.load("backends", "onnx")
PROFILE = OnnxBackend.profile
BACKENDS = [
    OnnxBackend(opset=opset, io=io, dynamic=dynamic, simplify=False)
    for opset, io, dynamic in itertools.product((18, 21), ("float", "integer"), (True, False))
]
OBSERVERS = ("minmax", "moving-average", "percentile", "mse")

SEEDS = range(16)


def parity(
    program: Program,
    backend: Backend,
    calibration: Sequence[Tensor],
    observer: str,
    out: Path,
    options: str = "",
    after: str = "",
) -> list[Check]:
    """Parity checks of a lowered program, quantized with options, and more passes after that."""
    bundle = fuseq.lower(
        program, backend=backend, out=out, calibration=calibration, observer=observer,
        passes=f"legalize,quantize{{{options}}}{after}",
    )  # fmt: skip
    assert bundle.result is not None
    checks = [check for check in bundle.result.checks if check.id.startswith("parity-")]
    assert not any(check.metrics["differing"] for check in checks), bundle.result.first_divergence
    assert all(check.passed for check in checks), bundle.result.first_divergence
    return checks


def fuzzed(seed: int, out: Path, after: str = "") -> list[Check]:
    """Parity checks of one random network."""
    draw = random.Random(seed)
    net = RandomNetwork(seed, draw.choice((3, 6, 10, 14))).eval()
    generator = torch.Generator().manual_seed(seed)
    program = fuseq.capture(net, net.inputs(SIZES[0], generator))
    calibration = [net.inputs((2, *SIZES[0][1:]), generator) for _ in range(2)]
    observer = draw.choice(OBSERVERS)
    return parity(program, BACKENDS[seed % 8], calibration, observer, out / str(seed), after=after)


def fuzzed_mixed(seed: int, out: Path) -> list[Check]:
    """Parity checks of one random network with values of 8 and 16 bits."""
    draw = random.Random(seed)
    net = RandomNetwork(seed, draw.choice((3, 6, 10, 14))).eval()
    generator = torch.Generator().manual_seed(seed)
    program = fuseq.capture(net, net.inputs(SIZES[0], generator))
    calibration = [net.inputs((2, *SIZES[0][1:]), generator) for _ in range(2)]
    options = [f"per_channel={draw.choice(('true', 'false'))}"]
    if draw.random() < 0.2:
        options.append("activation=uint16")
    else:
        legal = rewrite.apply(plugins.load("passes", "legalize")(profile=PROFILE), program)
        names = list(find_structure(legal, PROFILE).group)
        share = draw.choice((0.1, 0.3, 0.7))
        options.append(f"wide={tuple(n for n in names if draw.random() < share)}")
    backend = OnnxBackend(
        io=draw.choice(("float", "integer")), dynamic=draw.random() < 0.5, simplify=False
    )
    return parity(
        program, backend, calibration, draw.choice(OBSERVERS), out / str(seed), ",".join(options)
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_random_networks_agree_in_every_integer(seed: int, tmp_path: Path) -> None:
    checks = fuzzed(seed, tmp_path)
    assert sum(check.metrics["total"] for check in checks) > 100


@pytest.mark.parametrize("seed", range(24))
def test_random_networks_of_two_widths_agree(seed: int, tmp_path: Path) -> None:
    """In every integer of 8 bits and of ops that work element by element; else within a step."""
    checks = fuzzed_mixed(seed, tmp_path)
    assert sum(check.metrics["total"] for check in checks) > 50


@pytest.mark.parametrize("seed", SEEDS[:8])
def test_refined_integers_agree_too(seed: int, tmp_path: Path) -> None:
    checks = fuzzed(seed, tmp_path, ",round-weights,correct-bias")
    assert sum(check.metrics["total"] for check in checks) > 100


class Call(nn.Module):
    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function, self.conv, self.linear = function, nn.Conv2d(3, 3, 3), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


CASES: dict[str, Callable[[Any, Tensor], object]] = {
    "softmax-of-two": lambda m, x: m.conv(F.softmax(m.conv(x)[:, :2], 1).repeat(1, 2, 1, 1)[:, 1:]),
    "softmax-between-convs": lambda m, x: m.conv(F.softmax(m.conv(x), 1)),
    "always-zero-sum": lambda m, x: (
        m.conv(x - x),
        m.conv(x) + (-x[:, :, 2:, 2:] + x[..., 2:, 2:]),
    ),
    "always-zero-sum-and-relu": lambda m, x: (lambda y: m.conv(torch.relu(y + y * -1.0)))(
        m.conv(x)
    ),
    "relu-that-a-clamp-undoes": lambda m, x: m.conv(torch.clamp(torch.relu(m.conv(x)), -2.0, -0.1)),
    "dead-mean": lambda m, x: m.conv(x) * torch.relu(m.conv(x) - 99).mean((2, 3), keepdim=True),
    "linear-on-a-map": lambda m, x: m.linear(m.conv(x).permute(0, 2, 3, 1)),
    "clamp-without-zero": lambda m, x: m.conv(torch.clamp(m.conv(x), 0.25, 0.75)),
    "float-operand-of-concat": lambda m, x: m.conv(torch.cat([F.elu(m.conv(x)), m.conv(x)], 2)),
    "silu-before-concat": lambda m, x: m.conv(torch.cat([F.silu(m.conv(x)), m.conv(x)], 2)),
    "pool-hanging-over": lambda m, x: F.avg_pool2d(m.conv(x), 3, 2, 0, True, True),
    "pool-hanging-over-padded": lambda m, x: F.avg_pool2d(m.conv(x), 3, 2, 1, True, False),
    "output-used-inside": lambda m, x: (lambda y: (y, m.conv(y), x))(m.conv(x)),
    "concat-of-one-value": lambda m, x: (lambda y: m.conv(torch.cat([y, y], 2)))(m.conv(x)),
    "activation-shared": lambda m, x: (lambda y: (torch.relu(y), F.relu6(y)))(m.conv(x)),
}


@pytest.mark.parametrize("name", CASES)
def test_networks_that_once_differed(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = fuseq.capture(Call(CASES[name]).eval(), torch.rand(1, 3, 12, 14))
    calibration = [torch.rand(2, 3, 12, 14) - 0.4 for _ in range(2)]
    for index, backend in enumerate((BACKENDS[0], BACKENDS[-1])):
        parity(program, backend, calibration, "minmax", tmp_path / str(index))


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("float-operand-of-concat", "QLinearConcat"),
        ("silu-before-concat", "QLinearConcat"),
        ("linear-on-a-map", "QGemm"),
        ("dead-mean", "QLinearGlobalAveragePool"),
        ("pool-hanging-over", "QLinearAveragePool"),
    ],
)
def test_the_runtime_takes_its_integer_kernel(name: str, kernel: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = fuseq.capture(Call(CASES[name]).eval(), torch.rand(1, 3, 12, 14))
    parity(program, BACKENDS[0], [torch.rand(2, 3, 12, 14)], "minmax", tmp_path / "bundle")
    runner = BACKENDS[0].runner(tmp_path / "bundle" / "model.int8.qdq.onnx")
    assert kernel in runner.optimized_ops()


def test_integer_pools_the_runtime_gets_wrong_are_refused(tmp_path: Path) -> None:
    program = fuseq.capture(
        Call(lambda m, x: F.avg_pool2d(m.conv(x), 3, 2, 1, True, True)).eval(),
        torch.rand(1, 3, 12, 14),
    )
    with pytest.raises(fuseq.FuseqError, match="average pool") as caught:
        parity(program, BACKENDS[0], [torch.rand(2, 3, 12, 14)], "minmax", tmp_path / "bundle")
    assert caught.value.code == "FQ501"


def main(first: int, last: int) -> None:
    """Run seeds, of one width and of two, and print what fails."""
    compared = 0
    for seed in range(first, last):
        try:
            with tempfile.TemporaryDirectory() as folder:
                for run in (fuzzed, fuzzed_mixed):
                    checks = run(seed, Path(folder) / run.__name__)
                    compared += sum(int(check.metrics["total"]) for check in checks)
        except Exception as error:
            print(seed, type(error).__name__, str(error).splitlines()[0], flush=True)
    print(f"{last - first} networks, {compared} integers")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
