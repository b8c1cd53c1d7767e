"""Clones of large programs leave memory when they are done with."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

import fuseq
from fuseq.memory import HEAVY, free_clones


@pytest.mark.parametrize(("channels", "freed"), [(8, False), (2048, True)])
def test_clones_that_nobody_holds(channels: int, freed: bool) -> None:
    program = fuseq.capture(nn.Conv2d(channels, channels, 1), torch.rand(1, channels, 1, 1))
    assert (4 * channels**2 >= HEAVY) == freed
    clone = program.clone()
    weight = weakref.ref(next(clone.module.parameters()))
    gc.disable()
    try:
        del clone
        free_clones(program)
        assert (weight() is None) == freed
    finally:
        gc.enable()
