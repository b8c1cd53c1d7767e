"""What ranks of a distributed run agree on: calibration data, ranges, and the model they train."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fuseq.errors import FuseqError


def is_distributed() -> bool:
    """Whether there is more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def widest(ends: Tensor) -> Tensor:
    """The range that holds those of all ranks.

    Args:
        ends: `[groups, 2]`, smallest and largest value of each; the same groups on all ranks.
    """
    if not is_distributed():
        return ends
    both = torch.stack((-ends[:, 0], ends[:, 1]))
    dist.all_reduce(both, dist.ReduceOp.MAX)
    return torch.stack((-both[0], both[1]), 1)


class BatchesOfAllRanks:
    """What one process would read that had the batches of all: the first of each rank, and so on.

    Whatever looks at it sees the same on every rank. A batch that several ranks give in the same
    round comes once: they may have been given the same loader.
    """

    def __init__(self, own: Iterable[Any]) -> None:
        """Share batches.

        Args:
            own: of this rank; as many as there are, and none where there are none.
        """
        self.own = own

    def __iter__(self) -> Iterator[Any]:
        """All batches; every rank has to ask for them."""
        own = iter(self.own)
        while True:
            rounds = _from_all_ranks(list(islice(own, 1)))
            if not any(rounds):
                return
            yield from _without_copies([batch for given in rounds for batch in given])


def follow_first(model: nn.Module) -> None:
    """Give a model the state that it has on rank 0."""
    if is_distributed():
        state = [model.state_dict()]
        dist.broadcast_object_list(state, 0)
        model.load_state_dict(state[0])


def require_equal(model: nn.Module) -> None:
    """Refuse a model that differs between ranks.

    Raises:
        FuseqError: FQ404 naming what differs, on every rank.
    """
    if not is_distributed():
        return
    states = _from_all_ranks({name: _digest(x) for name, x in model.state_dict().items()})
    names = dict.fromkeys(name for state in states for name in state)
    different = [name for name in names if len({state.get(name) for state in states}) > 1]
    if different:
        raise FuseqError(
            "FQ404",
            f"ranks disagree on {', '.join(different[:5])}",
            why="each rank would ship another file",
            fix="wrap the model in DistributedDataParallel, and run the same steps on every rank",
        )


def _from_all_ranks(value: Any) -> list[Any]:
    """Values of all ranks, in order; by pickling, which works for any backend and device."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _without_copies(batches: list[Any]) -> list[Any]:
    found: dict[tuple[Any, ...], Any] = {}
    for batch in batches:
        leaves, structure = pytree.tree_flatten(batch)
        parts = (_digest(x) if isinstance(x, Tensor) else repr(x) for x in leaves)
        found.setdefault((str(structure), *parts), batch)
    return list(found.values())


def _digest(value: Tensor) -> str:
    data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    kind = f"{value.dtype}{tuple(value.shape)}"
    return hashlib.sha256(kind.encode() + data.numpy().tobytes()).hexdigest()
