"""Which modules to record in training mode, so that their branches are seen.

Some re-parameterizable blocks fuse themselves inside `forward` when in eval, and compute the same
sum branch by branch in training. Others do something else in training: drop paths, return auxiliary
outputs. Which is which is decided by running the copy: a type of module is recorded in training
mode if the model then computes the same and draws no random number. Layers (batch norm, dropout)
stay in eval.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Collection
from types import CodeType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from fuseq.errors import FuseqError
from fuseq.model_copy import traceable
from fuseq.model_runs import SAME_OUTPUT, Run, call, distance, tensors

Types: TypeAlias = frozenset[type[nn.Module]]

_LAYERS = (
    nn.modules.batchnorm._NormBase,
    nn.modules.dropout._DropoutNd,
)


def training_types(model: nn.Module, first: Run) -> Types:
    """Types of the modules to record in training mode; empty for most models.

    Args:
        model: any module.
        first: example inputs with the outputs in eval.
    """
    candidates = frozenset(
        type(module)
        for module in model.modules()
        if not isinstance(module, _LAYERS) and _looks_at_training(type(module))
    )
    if not candidates or _same(model, candidates, first):
        return candidates
    alone = frozenset(t for t in candidates if _same(model, {t}, first))
    return alone if alone and _same(model, alone, first) else frozenset()


def in_training(model: nn.Module) -> bool:
    """Whether a model holds a module in training mode that computes something else in eval."""
    return any(
        module.training and (isinstance(module, _LAYERS) or _looks_at_training(type(module)))
        for module in model.modules()
    )


def fused_in_eval(model: nn.Module, types: Types, first: Run) -> list[str]:
    """Names of the types that compute the same in another way when in training mode."""
    return sorted(
        t.__name__
        for t in types
        if not all(map(torch.equal, _outputs(model, {t}, first[0]), first[1]))
    )


def _looks_at_training(kind: type[nn.Module]) -> bool:
    functions = [
        inspect.unwrap(value)
        for base in kind.__mro__
        if not base.__module__.startswith("torch.")
        for value in vars(base).values()
        if inspect.isfunction(value)
    ]
    return any(_mentions_training(f.__code__) for f in functions)


def _mentions_training(code: CodeType) -> bool:
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    return "training" in code.co_names or any(map(_mentions_training, inner))


def _same(model: nn.Module, types: Collection[type[nn.Module]], first: Run) -> bool:
    drawn = _generators()
    try:
        actual = _outputs(model, types, first[0])
    except FuseqError:
        return False
    return _generators() == drawn and distance(actual, first[1]) <= SAME_OUTPUT


def _outputs(
    model: nn.Module, types: Collection[type[nn.Module]], inputs: tuple[Tensor, ...]
) -> list[Tensor]:
    return tensors(call(traceable(model, types, plain_outputs=False), inputs))


def _generators() -> tuple[Any, ...]:
    """State of every global random number generator: a draw changes it."""
    numpys = str(np.random.get_state(legacy=False))
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numpys
