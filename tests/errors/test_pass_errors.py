"""What the pipeline says when a pass breaks its contract: the exact text."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import fuseq
from fuseq.errors import FuseqError
from fuseq.rewrite import Pass, apply
from tests.planted import wrong_passes as wrong


def rejection(step: Pass, *layers: nn.Module) -> str:
    torch.manual_seed(0)
    program = fuseq.capture(nn.Sequential(*layers), torch.randn(1, 4, 6, 8))
    with pytest.raises(FuseqError) as rejected:
        apply(step, program)
    return re.sub(r"test_pass_errors.py:\d+|wrong_passes.py:\d+", "FILE:N", str(rejected.value))


def conv() -> nn.Module:
    return nn.Conv2d(4, 4, 3, padding=1)


def test_broken_promise() -> None:
    text = rejection(wrong.FoldBatchNorm("eps"), conv(), nn.BatchNorm2d(4), nn.ReLU())
    assert re.sub(r"differ by \S+", "differ by E", text) == (
        "error[FQ301]: pass 'wrong' broke its promise SameFunction(rtol=1e-09)\n"
        "  --> `_0` in 0\n"
        "  why: outputs differ by E of their range, allowed 1e-09, on a float64 twin with "
        "perturbed weights and statistics\n"
        "  help: mend the rewrite; if the change is meant, promise Approximates or NewFunction"
    )


def test_promise_broken_on_the_real_weights_only() -> None:
    text = rejection(wrong.DropDefaultBatchNorm(), conv(), nn.BatchNorm2d(4), nn.ReLU())
    assert "  --> `relu` in 2\n" in text
    assert "on a float64 twin with the program's own weights" in text


def test_malformed_graph() -> None:
    assert rejection(wrong.ShareModule(), conv(), nn.ReLU(), conv()) == (
        "error[FQ203]: pass 'wrong' left a malformed graph\n"
        "  why: `_0` in 0: module `0` is called 2 times\n"
        "  help: use Program.insert_module and replace_all_uses_with, and keep modules called once"
    )


def test_changed_interface() -> None:
    assert rejection(wrong.DropPool(), nn.AvgPool2d(2)) == (
        "error[FQ204]: pass 'wrong' changed the program's inputs or outputs\n"
        "  why: [('input_1', (1, 4, 6, 8)), ('output', (1, 4, 3, 4))] became "
        "[('input_1', (1, 4, 6, 8)), ('output', (1, 4, 6, 8))]\n"
        "  help: a pass keeps names, order and shapes of inputs and outputs"
    )


def test_raising_pass() -> None:
    text = rejection(wrong.Raises(), conv())
    assert text == (
        "error[FQ206]: pass 'wrong' raised TypeError: '_node_list' object is not subscriptable\n"
        "  --> FILE:N: return len(program.graph.nodes[0])  # type: ignore[index]\n"
        "  help: a pass refuses with a FuseqError, or leaves the program alone"
    )
