"""Train any network a little, ship it, and hold training, evaluation and the file to each other."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import fuseq
from fuseq import plugins
from fuseq.qat import QatModel
from fuseq.quant.executor import execute

STAGES = ((True, False), (False, False), (False, True))
Batch = tuple[Tensor, ...]


def train(model: QatModel, batches: list[Batch], rate: float = 1e-4) -> None:
    """A step of every stage on every batch: all outputs pull, all parameters must get a gradient.

    Parameters whose layer nothing reaches any more, behind dead activations, get zeros.
    """
    if not list(model.parameters()):
        return
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for observing, frozen in STAGES:
        model.stage(observing=observing, weight_grids_frozen=frozen)
        for batch in batches:
            optimizer.zero_grad()
            results = [y for y in tree_leaves(model(*batch)) if y.requires_grad]
            if not results:
                continue  # nothing on the way to the outputs has parameters
            sum((y.square().mean() for y in results), torch.zeros(())).backward()
            for name, parameter in model.network.named_parameters():
                assert parameter.grad is not None, f"{name} has no gradient"
                assert bool(parameter.grad.isfinite().all()), f"{name} has no finite gradient"
            optimizer.step()


def deployed(
    model: QatModel, batches: list[Batch], out: Path, backend: Any = "onnx"
) -> tuple[int, int]:
    """Training against evaluation, bit for bit, and evaluation against the file.

    From input to output where the program computes in integers only; else op by op.

    Returns:
        Integers compared op by op, and outputs compared from end to end.
    """
    model.stage(observing=False, weight_grids_frozen=True)
    program = fuseq.qat.finalize(model)
    assert program.quantization is not None
    bundle = fuseq.lower(program, backend=backend, out=out, calibration=batches)
    assert bundle.result is not None
    checks = [check for check in bundle.result.checks if check.kind == "parity"]
    for check in checks:
        assert check.passed, (check, bundle.result.first_divergence)
        assert not check.metrics["differing"]
    file = bundle.file("int8")
    assert file is not None
    runner = plugins.load("backends", "onnx")().runner(file)
    ends = 0
    for batch in batches:
        with torch.no_grad():
            trained = tree_leaves(model.train()(*batch))
            evaluated = tree_leaves(model.eval()(*batch))
        for ours, theirs in zip(trained, evaluated, strict=True):
            assert torch.equal(ours, theirs), "training differs from evaluation"
        if runner.dtypes[0] == "uint8" or execute(program, batch).rounded:
            continue
        given = runner(*(x.numpy() for x in batch))
        for node, ours, theirs in zip(program.outputs(), evaluated, given, strict=True):
            if node.name in program.quantization.grids:  # a float op at the end rounds its own way
                assert np.array_equal(ours.numpy(), theirs), "evaluation differs from the file"
                ends += ours.numel()
    return sum(int(check.metrics["total"]) for check in checks), ends


def prepared(network: nn.Module, batches: list[Batch], **options: Any) -> QatModel:
    """Prepared on the first batch; every batch calibrates."""
    return fuseq.qat.prepare(network, batches[0], calibration=batches, **options)
