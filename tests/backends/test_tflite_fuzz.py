"""Random networks, lowered: every integer of every value on both kernel sets of LiteRT.

A long run is `python -m tests.backends.test_tflite_fuzz FIRST LAST`; a seed that fails belongs in
`test_tflite_corners`.
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import fuseq
from fuseq.backends.tflite import TfliteBackend
from fuseq.equivalence import Check
from fuseq.pass_spec import parse_passes
from fuseq.program import Program
from fuseq.quant.structure import find_structure
from fuseq.rewrite import Pipeline
from tests.quant.random_networks import SIZES, RandomNetwork

PROFILE = TfliteBackend.profile
SEEDS = range(10)
OBSERVERS = ("minmax", "moving-average", "percentile", "mse")


def drawn(draw: random.Random) -> tuple[TfliteBackend, Program, list[torch.Tensor]]:
    """A network that computes what the format can hold, with its calibration data."""
    for attempt in itertools.count():
        seed = draw.randrange(10**6)
        network = RandomNetwork(seed, draw.choice((3, 6, 10, 14))).eval()
        generator = torch.Generator().manual_seed(seed)
        resizable = attempt == 0 and draw.random() < 0.3
        program = fuseq.capture(network, network.inputs(SIZES[0], generator), dynamic=resizable)
        backend = TfliteBackend(
            io=draw.choice(("int8", "uint8", "float")),
            layout=draw.choice(("nhwc", "nchw")),
            resizable=resizable,
        )
        batches = [network.inputs((2, *SIZES[0][1:]), generator) for _ in range(2)]
        ready = legal(program)
        if find_structure(ready, PROFILE).integer and not backend.refusals(ready):
            return backend, program, [part for batch in batches for part in batch.split(1)]
    raise AssertionError("no end of networks")


def legal(program: Program) -> Program:
    """The program that is quantized."""
    return Pipeline(parse_passes("fuse-affine,legalize", profile=PROFILE)).run(program)


def options(draw: random.Random, program: Program) -> str:
    """Of the pass `quantize`: mostly 8 bits, some networks of 16 bits, some of both."""
    chosen = [f"per_channel={draw.choice(('true', 'true', 'false'))}"]
    kind = draw.choice(("narrow", "narrow", "narrow", "wide", "both"))
    if kind == "wide":
        chosen.append("activation=int16")
    if kind == "both":
        names = list(find_structure(legal(program), PROFILE).group)
        chosen.append(f"wide={tuple(n for n in names if draw.random() < 0.3)}")
    return ",".join(chosen)


def fuzzed(seed: int, out: Path) -> list[Check]:
    """Parity checks of one random network; none if 16 bits make the format refuse it."""
    draw = random.Random(seed)
    backend, program, calibration = drawn(draw)
    passes = f"fuse-affine,legalize,quantize{{{options(draw, program)}}}"
    try:
        bundle = fuseq.lower(
            program, backend=backend, out=out / str(seed), calibration=calibration,
            observer=draw.choice(OBSERVERS), passes=passes,
        )  # fmt: skip
    except fuseq.FuseqError as error:
        if error.code == "FQ501" and "no kernel of 16 bits" in str(error):
            return []
        raise
    assert bundle.result is not None
    checks = [check for check in bundle.result.checks if check.kind == "parity"]
    assert not any(check.metrics["differing"] for check in checks), bundle.result.first_divergence
    assert all(check.passed for check in checks), bundle.result.first_divergence
    return checks


@pytest.mark.parametrize("seed", SEEDS)
def test_no_integer_of_a_random_network_is_apart(seed: int, tmp_path: Path) -> None:
    checks = fuzzed(seed, tmp_path)
    assert sum(check.metrics["total"] for check in checks) > 50 or not checks


def main(first: int, last: int) -> None:
    """Run seeds, and print what fails."""
    compared = refused = 0
    for seed in range(first, last):
        try:
            with tempfile.TemporaryDirectory() as folder:
                checks = fuzzed(seed, Path(folder))
                compared += sum(int(check.metrics["total"]) for check in checks)
                refused += not checks
        except Exception as error:
            text = (str(error) or type(error).__name__).splitlines()[0]
            print(seed, type(error).__name__, text, flush=True)
    print(f"{last - first} networks, {refused} of them refused, {compared} integers")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
