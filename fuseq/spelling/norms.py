"""Normalization layers. A batch norm is taken in its inference form, with running statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fuseq.build import Builder, Value
from fuseq.spelling.registry import spelled

aten = torch.ops.aten


@spelled(F.batch_norm)
def batch_norm(
    build: Builder, x: Value, running_mean: Any, running_var: Any, weight: Value = None,
    bias: Value = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Value:  # fmt: skip
    if training or running_mean is None or running_var is None:
        raise ValueError("a batch norm uses batch statistics: it has no running statistics to fold")
    kinds: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    kind = kinds.get(len(build.shape(x)))
    if kind is None:
        return build.foreign(
            F.batch_norm, x, running_mean, running_var, weight, bias, False, momentum, eps
        )
    state = {
        "weight": torch.ones_like(running_mean) if weight is None else weight,
        "bias": torch.zeros_like(running_mean) if bias is None else bias,
        "running_mean": running_mean,
        "running_var": running_var,
        "num_batches_tracked": torch.tensor(0),
    }
    return build.module(kind(running_mean.shape[0], eps=eps, device="meta"), state, x)


@spelled(torch.batch_norm, aten.batch_norm.default)
def aten_batch_norm(
    build: Builder, x: Value, weight: Value, bias: Value, mean: Any, var: Any, training: bool,
    momentum: float, eps: float, cudnn_enabled: bool = True,
) -> Value:  # fmt: skip
    return batch_norm(build, x, mean, var, weight, bias, training, momentum, eps)


@spelled(aten._native_batch_norm_legit_no_training.default)
def native_batch_norm(
    build: Builder, x: Value, weight: Value, bias: Value, mean: Any, var: Any, momentum: float,
    eps: float,
) -> Value:  # fmt: skip
    return (batch_norm(build, x, mean, var, weight, bias, False, momentum, eps), None, None)


@spelled(F.instance_norm)
def instance_norm(
    build: Builder, x: Value, running_mean: Value = None, running_var: Value = None,
    weight: Value = None, bias: Value = None, use_input_stats: bool = True, momentum: float = 0.1,
    eps: float = 1e-5,
) -> Value:  # fmt: skip
    if running_mean is not None and not use_input_stats:
        return batch_norm(build, x, running_mean, running_var, weight, bias, False, momentum, eps)
    if len(build.shape(x)) != 4:
        return build.foreign(F.instance_norm, x, weight=weight, bias=bias, eps=eps)
    norm = nn.InstanceNorm2d(build.shape(x)[1], eps=eps, affine=weight is not None, device="meta")
    return build.module(norm, {"weight": weight, "bias": bias}, x)


@spelled(torch.instance_norm, aten.instance_norm.default)
def aten_instance_norm(
    build: Builder, x: Value, weight: Value, bias: Value, mean: Value, var: Value,
    use_input_stats: bool, momentum: float, eps: float, cudnn_enabled: bool = True,
) -> Value:  # fmt: skip
    return instance_norm(build, x, mean, var, weight, bias, use_input_stats, momentum, eps)


@spelled(F.group_norm, torch.group_norm, aten.group_norm.default)
def group_norm(
    build: Builder, x: Value, num_groups: int, weight: Value = None, bias: Value = None,
    eps: float = 1e-5, cudnn_enabled: bool = True,
) -> Value:  # fmt: skip
    channels = build.shape(x)[1]
    norm = nn.GroupNorm(num_groups, channels, eps, affine=weight is not None, device="meta")
    return build.module(norm, {"weight": weight, "bias": bias}, x)


@spelled(aten.native_group_norm.default)
def native_group_norm(
    build: Builder, x: Value, weight: Value, bias: Value, n: Any, c: Any, hw: Any, groups: int,
    eps: float,
) -> Value:  # fmt: skip
    return (group_norm(build, x, groups, weight, bias, eps), None, None)


@spelled(F.layer_norm, torch.layer_norm, aten.layer_norm.default)
def layer_norm(
    build: Builder, x: Value, normalized_shape: Sequence[int], weight: Value = None,
    bias: Value = None, eps: float = 1e-5, cudnn_enable: bool = True,
) -> Value:  # fmt: skip
    affine = weight is not None
    norm = nn.LayerNorm(
        list(normalized_shape), eps, affine, affine and bias is not None, device="meta"
    )
    return build.module(norm, {"weight": weight, "bias": bias}, x)


@spelled(aten.native_layer_norm.default)
def native_layer_norm(
    build: Builder, x: Value, shape: Sequence[int], weight: Value, bias: Value, eps: float
) -> Value:
    return (layer_norm(build, x, shape, weight, bias, eps), None, None)
