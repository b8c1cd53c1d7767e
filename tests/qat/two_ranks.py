"""What each of two ranks does in the tests of distribution; results are read by these."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fuseq.errors import FuseqError
from fuseq.qat import Curriculum, QatModel, distribution, finalize
from tests.qat.networks import Residual, batches, prepared

RANKS = 2
SCENES: dict[str, Callable[[int], Any]] = {}


def scene(function: Callable[[int], Any]) -> Callable[[int], Any]:
    SCENES[function.__name__] = function
    return function


def run(rank: int, folder: Path) -> None:
    """Play all scenes; what each returns or raises goes into a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        f"file://{folder}/ranks",
        timeout=timedelta(minutes=2),  # a rank that waits for the other says so
        rank=rank,
        world_size=RANKS,
    )
    results: dict[str, Any] = {}
    for name, play in SCENES.items():
        try:
            results[name] = play(rank)
        except FuseqError as error:
            results[name] = str(error)
        except Exception:
            results[name] = traceback.format_exc()
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def data_of(rank: int, count: int = 4) -> list[Tensor]:
    """Other images on each rank: brighter, and in parts below zero, on the second."""
    return [(1 + 2 * rank) * batch - rank for batch in batches(count, seed=20 + rank)]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def wrapped(model: nn.Module, **options: Any) -> DistributedDataParallel:
    return DistributedDataParallel(model, **options)


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    result: Tensor = (model(batch) - batch).square().mean()
    return result


def observed(rank: int, **options: Any) -> dict[str, Tensor]:
    """Forward and backward passes, but no step."""
    model = prepared()
    parallel = wrapped(model, **options)
    for batch in data_of(rank):
        loss(parallel, batch).backward()
    return state_of(model)


@scene
def observing(rank: int) -> Any:
    return observed(rank)


@scene
def observing_without_broadcast(rank: int) -> Any:
    return observed(rank, broadcast_buffers=False)


@scene
def planted_ranges_of_one_rank(rank: int) -> Any:
    """What usual modules do: observers that never hear of the other ranks."""
    everywhere = distribution.widest
    distribution.widest = lambda ends: ends
    try:
        model = prepared()
        parallel = wrapped(model, broadcast_buffers=False)
        curriculum = Curriculum(parallel, observe=1, tune=1, freeze=1)
        curriculum.step(0)
        for batch in data_of(rank):
            loss(parallel, batch).backward()
    finally:
        distribution.widest = everywhere
    curriculum.step(1)


def trained(
    rank: int,
    learn_scales: bool = False,
    at_epoch: Callable[[Curriculum], None] = lambda curriculum: None,
    **options: Any,
) -> QatModel:
    """Two epochs in each stage; calls `at_epoch` before each epoch."""
    model = prepared(learn_scales=learn_scales)
    parallel = wrapped(model, **options)
    curriculum = Curriculum(parallel, observe=2, tune=2, freeze=2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for epoch in range(6):
        curriculum.step(epoch)
        at_epoch(curriculum)
        for batch in data_of(rank):
            optimizer.zero_grad()
            loss(parallel, batch).backward()
            optimizer.step()
            curriculum.clip_weights()
    return model


@scene
def training(rank: int) -> Any:
    model = trained(rank)
    return state_of(model), finalize(model)(batches(1)[0])


@scene
def training_with_learned_scales(rank: int) -> Any:
    model = trained(rank, learn_scales=True, find_unused_parameters=True)
    return state_of(model), finalize(model)(batches(1)[0])


@scene
def frozen_scales(rank: int) -> Any:
    """States at the beginning of each epoch, and at the end."""
    states: list[dict[str, Tensor]] = []
    model = trained(
        rank,
        learn_scales=True,
        at_epoch=lambda curriculum: states.append(state_of(curriculum.model)),
        find_unused_parameters=True,
    )
    return [*states, state_of(model)]


@scene
def learned_scales_need_an_option(rank: int) -> Any:
    trained(rank, learn_scales=True)


@scene
def accumulating(rank: int) -> Any:
    """Two batches a step, the first without an exchange of gradients."""
    model = prepared()
    parallel = wrapped(model)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    data = data_of(rank)
    for first, second in zip(data[::2], data[1::2], strict=True):
        with parallel.no_sync():
            loss(parallel, first).backward()
        loss(parallel, second).backward()
        optimizer.step()
        optimizer.zero_grad()
    return state_of(model)


@scene
def planted_weight_of_one_rank(rank: int) -> Any:
    model = trained(rank)
    with torch.no_grad():
        model.get_parameter("network.head.weight")[0, 0, 0, 0] += 1e-6 * rank
    finalize(model)


@scene
def no_wrapper(rank: int) -> Any:
    model = prepared()
    curriculum = Curriculum(model, observe=1, tune=1, freeze=1)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    curriculum.step(0)
    loss(model, data_of(rank)[0]).backward()
    optimizer.step()
    curriculum.step(1)


def prepared_from(data: list[Tensor], observer: str = "minmax", seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model = Residual()
    return state_of(prepared(model, calibration=data, observer=observer))


@scene
def preparing(rank: int) -> Any:
    observers = ("minmax", "moving-average", "percentile", "mse")
    return {observer: prepared_from(data_of(rank), observer) for observer in observers}


@scene
def preparing_with_parts_of_other_lengths(rank: int) -> Any:
    return prepared_from(data_of(rank, 3 - rank))


@scene
def preparing_with_the_same_loader(rank: int) -> Any:
    return prepared_from(data_of(1))


@scene
def preparing_with_other_weights(rank: int) -> Any:
    return prepared_from(data_of(rank), seed=rank)


@scene
def preparing_with_bad_data_on_one_rank(rank: int) -> Any:
    return prepared_from([batch[:, rank:] for batch in data_of(rank)])


@scene
def resuming_on_one_rank(rank: int) -> Any:
    """A checkpoint that only one rank loads."""
    model = prepared()
    curriculum = Curriculum(wrapped(model), observe=1, tune=1, freeze=1)
    if rank == 0:
        state = state_of(model)
        model.load_state_dict({**state, "network.stem.weight": state["network.stem.weight"] / 2})
        curriculum.load_state_dict({"position": 1})
    curriculum.step(1)
