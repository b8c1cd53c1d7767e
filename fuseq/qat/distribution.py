"""What ranks of a distributed run agree on: ranges that were observed, and the grids in use."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

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


def require_equal(model: nn.Module) -> None:
    """Refuse a model that differs between ranks.

    Raises:
        FuseqError: FQ404 naming what differs, on every rank.
    """
    if not is_distributed():
        return
    different = []
    for name, value in model.state_dict().items():
        first = value.detach().clone()
        dist.broadcast(first, 0)
        same = torch.tensor(float(torch.equal(first, value)), device=value.device)
        dist.all_reduce(same, dist.ReduceOp.MIN)
        if not bool(same):
            different.append(name)
    if different:
        raise FuseqError(
            "FQ404",
            f"ranks disagree on {', '.join(different[:5])}",
            why="each rank would ship another file",
            fix="wrap the model in DistributedDataParallel, and run the same steps on every rank",
        )
