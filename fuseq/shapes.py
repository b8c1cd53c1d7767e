"""Shapes of every value of a program, found by running it on fake tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fuseq.errors import FuseqError, first_line
from fuseq.program import Program
from fuseq.quiet import quiet_torch


def propagate(program: Program) -> None:
    """Set `meta["shape"]` and `meta["dtype"]` of each node, at the program's example inputs.

    Raises:
        FuseqError: FQ203 naming the first node that cannot run.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, torch.no_grad(), quiet_torch():
        inputs = [fake.from_tensor(x, static_shapes=True) for x in program.example_inputs]
        _Recorder(program).run(*inputs)


class FakeRun(fx.Interpreter):
    """Runs a program on fake tensors. Fitting batch norms are passed over.

    torch decomposes a batch norm on fake tensors into a dozen ops, which takes longer than all
    convolutions together.
    """

    def __init__(self, program: Program) -> None:
        """Prepare a run; a failure raises without a traceback on the terminal.

        Args:
            program: to run.
        """
        super().__init__(program.module)
        self.extra_traceback = False
        self.program = program

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Result of a module; a fitting batch norm returns its input."""
        module = self.fetch_attr(target)
        if isinstance(module, nn.BatchNorm2d) and args[0].dim() == 4 and _fits(module, args[0]):
            return args[0]
        return super().call_module(target, args, kwargs)


def _fits(norm: nn.BatchNorm2d, x: Tensor) -> bool:
    mean = norm.running_mean
    return mean is not None and (mean.shape[0], mean.dtype) == (x.shape[1], x.dtype)


class _Recorder(FakeRun):
    def run_node(self, node: fx.Node) -> Any:
        try:
            result = super().run_node(node)
        except Exception as error:
            raise FuseqError(
                "FQ203",
                f"{self.program.where(node)} cannot run: {first_line(error)}",
                fix="the pass before this built a node whose operands do not fit",
            ) from error
        if isinstance(result, Tensor):
            node.meta["shape"], node.meta["dtype"] = tuple(result.shape), result.dtype
        return result
