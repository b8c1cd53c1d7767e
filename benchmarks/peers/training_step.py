"""One training step: what it costs in time, and in memory between forward and backward."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers.bed import RATE

WARM_UP = 3


class Step:
    """One training step of a network, on the same batch each time."""

    def __init__(self, module: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
        """Set up the optimizer."""
        self.module, (self.low, self.high) = module, batch
        self.optimizer = torch.optim.Adam(module.parameters(), lr=RATE)

    def __call__(self) -> None:
        """Forward, backward, update."""
        self.optimizer.zero_grad()
        self.loss().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def loss(self) -> Tensor:
        """Mean absolute error of the batch."""
        return F.l1_loss(self.module(self.low), self.high)

    def saved_mebibytes(self) -> float:
        """Size of what the forward pass keeps for the backward pass."""
        parameters = {p.untyped_storage().data_ptr() for p in self.module.parameters()}
        saved: dict[int, torch.UntypedStorage] = {}  # alive, so that no address comes twice

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                saved[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.loss()
        return sum(storage.nbytes() for storage in saved.values()) / 2**20


def timed(rows: Mapping[str, Step], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each step, round by round."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(-WARM_UP, rounds):
        for name, step in rows.items():
            start = time.process_time()
            step()
            if number >= 0:
                seconds[name].append(time.process_time() - start)
    return seconds
