"""Train networks in integers, export them, and count the outputs that the runtime computes apart.

    python -m benchmarks.qat_parity [NETWORK ...] [--outputs 600000] [--target tflite]

Each network is prepared, trained two steps in each of the three stages (grids observed, grids
frozen, weight grids frozen too) and exported. Then, on batches, image sizes and data it has not
seen,

- the training forward is compared with the evaluation forward, bit for bit, and
- the integers of the evaluation forward with those that the runtime (ONNX Runtime; LiteRT with
  XNNPACK) computes from the file as it ships, from input to output.

Networks in which a value is computed in float and then quantized are listed apart: there the last
bit depends on how each side rounds floats, so they are compared op by op, each op starting from the
runtime's own integers, and such a value may differ by one step.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import runpy
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import fuseq
import fuseq.qat
from fuseq import plugins
from fuseq.equivalence.interfaces import interface_of
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.qat import QatModel
from fuseq.quant.executor import execute

ROOT = Path(__file__).parents[1]

STAGES = ((True, False), (False, False), (False, True))
"""Whether activations are observed, and whether weight grids are frozen."""

MOST = 40
"""Batches: a classifier has too few outputs to make up for."""

NETWORKS = (
    "asymmetric decoder diverse_branch ecbsr efdn expandnet fastvit gated kernel_space lcnet_v2 "
    "levit mobilenet_v2 mobilenet_v3 mobileone orepa plain_usr qarepvgg rep_unet replknet repsr "
    "repvgg repvgg_plus resnet sesr shufflenet_v2 span squeezenet unet weight_standardized yolo "
    "examples/sisr_x3 examples/qatie examples/qdr"
).split()

COLUMNS = {
    "outputs": "outputs",
    "differing": "differing",
    "values": "values inside",
    "values_differing": "differing",
    "largest_step": "max LSB",
    "trained_apart": "training ≠ evaluation",
}
ROUNDED_COLUMNS = {
    "rounded": "rounded",
    "given": "differing op by op",
    "given_largest_step": "max LSB of rounded ones",
}

INTEGER_IO: dict[str, dict[str, Any]] = {"onnx": {"io": "integer"}, "tflite": {"io": "int8"}}
"""Options of a backend whose files take and give integers."""

OPTIONS: dict[str, dict[str, Any]] = {
    # Its borders hold what its batch norms make of zero, as the model computed it when captured.
    "diverse_branch": {"passes": "fuse-affine,equalize"},
}


@dataclass(frozen=True)
class Parity:
    """What was counted on one network.

    Attributes:
        outputs: integers of outputs, compared from end to end.
        differing: how many of them the runtime computes apart.
        values: integers of all values, likewise, on the first batches.
        values_differing: how many of them the runtime computes apart.
        largest_step: largest difference of two integers.
        trained_apart: outputs of the training forward that are not those of the evaluation forward.
        rounded: how many values are computed in float and then quantized.
        given: integers that differ where each op starts from the runtime's own.
        given_largest_step: largest difference among those computed in float and then quantized.
    """

    outputs: int
    differing: int
    values: int
    values_differing: int
    largest_step: int
    trained_apart: int
    rounded: int
    given: int
    given_largest_step: int


def train(model: QatModel, batches: list[Tensor], rate: float = 1e-4) -> None:
    """Two steps of every stage; every parameter must get a gradient, and a finite one."""
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for observing, frozen in STAGES:
        model.stage(observing=observing, weight_grids_frozen=frozen)
        for batch in batches[:2]:
            optimizer.zero_grad()
            sum(y.square().mean() for y in tree_leaves(model(batch))).backward()
            for name, parameter in model.named_parameters():
                if parameter.grad is None or not bool(parameter.grad.isfinite().all()):
                    raise ValueError(f"{name} has no finite gradient")
            optimizer.step()


def compare(
    model: QatModel, data: Iterator[Tensor], outputs: int, out: Path, target: str = "onnx"
) -> Parity:
    """Export a trained model and compare it with its file.

    Args:
        model: with frozen grids.
        data: endless batches.
        outputs: how many integers to compare, but at most `MOST` batches of them.
        out: directory for the bundle, which must not exist.
        target: name of the backend.
    """
    program = fuseq.qat.finalize(model)
    backend = plugins.load("backends", target)(**INTEGER_IO[target])
    example = next(data)
    bundle = fuseq.lower(program, example, backend=backend, out=out, calibration=[example])
    if backend.fixed_size:
        data = (x for x in data if x.shape == example.shape)
    runner = backend.runner(bundle.file("int8"))
    grids, interface = model.table().grids, interface_of(program)
    ends: list[Tensor] = []
    inner: list[Tensor] = []
    trained_apart, rounded = 0, 0
    for number, x in enumerate(itertools.islice(data, MOST)):
        (feed,) = interface.feeds(runner, (x.numpy(),))
        with torch.no_grad():
            trained = tree_leaves(model.train()(x))
            evaluated = tree_leaves(model.eval()(x))
        trained_apart += sum(int((a != b).sum()) for a, b in zip(trained, evaluated, strict=True))
        ours = [
            grids[n.name].quantize(y) for n, y in zip(program.outputs(), evaluated, strict=True)
        ]
        ends += [_apart(a, b) for a, b in zip(ours, runner(feed), strict=True)]
        if number < 3:
            execution = execute(program, (x,))
            rounded = len(execution.rounded)
            shown = runner.integers(feed)
            inner += [_apart(execution.integers[name], shown[name]) for name in shown]
        if sum(len(part) for part in ends) >= outputs:
            break
    assert bundle.result is not None
    checks = [c.metrics for c in bundle.result.checks if c.id.startswith("parity-")]
    compared, values = torch.cat(ends), torch.cat(inner)
    return Parity(
        outputs=len(compared),
        differing=int(compared.count_nonzero()),
        values=len(values),
        values_differing=int(values.count_nonzero()),
        largest_step=int(max(compared.max(), values.max())),
        trained_apart=trained_apart,
        rounded=rounded,
        given=sum(int(metrics["differing"]) for metrics in checks),
        given_largest_step=max(int(metrics.get("float_max_lsb", 0)) for metrics in checks),
    )


def _apart(ours: Tensor, theirs: np.ndarray) -> Tensor:
    return (ours - torch.from_numpy(theirs.astype(np.int32))).abs().flatten()


def unseen(program: Program, side: int) -> Iterator[Tensor]:
    """Batches of other sizes than the captured one, as far as these are free."""
    generator = torch.Generator().manual_seed(2)
    shapes = [(2, 3, side, side)]
    if set(program.origin.dynamic) >= {(0, 0), (0, 2), (0, 3)}:
        shapes += [(1, 3, 64, 96), (3, 3, 96, 64)]
    for shape in itertools.cycle(shapes):
        yield torch.rand(shape, generator=generator)


def made(name: str) -> nn.Module:
    """A network of tests/networks, or the model file of an example."""
    if not name.startswith("examples/"):
        network: nn.Module = importlib.import_module(f"tests.networks.{name}").small()
        return network
    model: nn.Module = runpy.run_path(str(ROOT / name / "model.py"))["get_model"]()
    return model


def measured(name: str, outputs: int, out: Path, side: int = 64, target: str = "onnx") -> Parity:
    """Prepare, train, export and compare one network."""
    torch.manual_seed(0)
    network = made(name)
    generator = torch.Generator().manual_seed(1)
    batches = [torch.rand(2, 3, side, side, generator=generator) for _ in range(2)]
    options = OPTIONS.get(name, {})
    model = fuseq.qat.prepare(network, batches[0], calibration=batches, target=target, **options)
    train(model, batches)
    return compare(model, unseen(model.program, side), outputs, out, target)


def table(found: Mapping[str, Parity], columns: Mapping[str, str]) -> str:
    """Markdown, with sums in the last line."""
    rows = [["network", *columns.values()], ["---", *("---:" for _ in columns)]]
    rows += [[name, *(f"{getattr(p, key):,}" for key in columns)] for name, p in found.items()]
    combine = {key: max if "step" in key else sum for key in columns}
    total = [f"{combine[key](getattr(p, key) for p in found.values()):,}" for key in columns]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*rows, [f"{len(found)} in all", *total]])


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--outputs", type=int, default=2_000_000)
    parser.add_argument("--target", choices=INTEGER_IO, default="onnx")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            try:
                found[name] = measured(name, arguments.outputs, out, target=arguments.target)
            except FuseqError as error:
                if error.code != "FQ501":
                    raise
                print(name, "is refused by this target", file=sys.stderr, flush=True)
                continue
        print(name, found[name], file=sys.stderr, flush=True)
    integer = {name: parity for name, parity in found.items() if not parity.rounded}
    rounded = {name: parity for name, parity in found.items() if parity.rounded}
    if integer:
        print("Integers only, compared from end to end:\n")
        print(table(integer, COLUMNS))
    if rounded:
        print("\nWith values that are computed in float and then quantized:\n")
        print(table(rounded, COLUMNS | ROUNDED_COLUMNS))


if __name__ == "__main__":
    main()
