"""Giving the same values another shape or order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from fuseq.build import Builder, Value
from fuseq.spelling.registry import sequence, spelled

aten = torch.ops.aten


@spelled(
    torch.reshape, "reshape", "view", aten.view.default, aten.reshape.default,
    aten._unsafe_view.default,
)  # fmt: skip
def reshape(build: Builder, x: Value, *shape: Any) -> Value:
    target = sequence(shape)
    if target == build.shape(x):
        return x
    return build.call(torch.reshape, x, shape=target)


@spelled("view_as", "reshape_as", aten.view_as.default, aten.reshape_as.default)
def reshape_as(build: Builder, x: Value, other: Value) -> Value:
    return reshape(build, x, build.sizes(other))


@spelled(torch.flatten, "flatten", aten.flatten.using_ints)
def flatten(build: Builder, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    rank = len(build.shape(x))
    start, end = start_dim % rank, end_dim % rank
    if start >= end:
        return x
    size = build.sizes(x)
    return build.call(torch.reshape, x, shape=(*size[:start], -1, *size[end + 1 :]))


@spelled(torch.unflatten, "unflatten", aten.unflatten.int)
def unflatten(build: Builder, x: Value, dim: int, sizes: Sequence[Any]) -> Value:
    size = build.sizes(x)
    dim %= len(size)
    return reshape(build, x, (*size[:dim], *sizes, *size[dim + 1 :]))


@spelled(torch.unsqueeze, "unsqueeze", aten.unsqueeze.default)
def unsqueeze(build: Builder, x: Value, dim: int) -> Value:
    return build.call(torch.unsqueeze, x, dim=dim % (len(build.shape(x)) + 1))


@spelled(torch.squeeze, "squeeze", aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)
def squeeze(build: Builder, x: Value, dim: Any = None) -> Value:
    rank, size = len(build.shape(x)), build.shape(x)
    dims = range(rank) if dim is None else dim if isinstance(dim, Sequence) else (dim,)
    gone = {d % rank for d in dims if size[d] == 1}
    shape = tuple(build.size(x, d) for d in range(rank) if d not in gone)
    return build.call(torch.reshape, x, shape=shape) if gone else x


@spelled(torch.permute, "permute", aten.permute.default)
def permute(build: Builder, x: Value, *dims: Any) -> Value:
    order = sequence(dims)
    order = tuple(d % len(order) for d in order)
    return x if order == tuple(range(len(order))) else build.call(torch.permute, x, dims=order)


@spelled(
    torch.transpose, torch.swapaxes, torch.swapdims, "transpose", "swapaxes", "swapdims",
    aten.transpose.int, aten.swapaxes.default, aten.swapdims.default,
)  # fmt: skip
def transpose(build: Builder, x: Value, dim0: int, dim1: int) -> Value:
    order = list(range(len(build.shape(x))))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permute(build, x, order)


@spelled(torch.t, "t", aten.t.default)
def t(build: Builder, x: Value) -> Value:
    return transpose(build, x, 0, 1)


@spelled(
    torch.movedim, torch.moveaxis, "movedim", "moveaxis", aten.movedim.int, aten.movedim.intlist,
    aten.moveaxis.int, aten.moveaxis.intlist,
)  # fmt: skip
def movedim(build: Builder, x: Value, source: Any, destination: Any) -> Value:
    # torch's own rule, on a tensor whose sizes are the dimensions' numbers.
    order = torch.empty([d + 1 for d in range(len(build.shape(x)))], device="meta")
    return permute(build, x, [n - 1 for n in order.movedim(source, destination).shape])


@spelled(
    torch.broadcast_to, "expand", "broadcast_to", aten.expand.default, aten.broadcast_to.default
)
def expand(build: Builder, x: Value, *size: Any, implicit: bool = False) -> Value:
    target = sequence(size)
    own = (None,) * (len(target) - len(build.shape(x))) + build.sizes(x)
    if all(a in (-1, b) for a, b in zip(target, own, strict=True)):
        return x
    return build.foreign(aten.expand.default, x, target)


@spelled("expand_as", aten.expand_as.default)
def expand_as(build: Builder, x: Value, other: Value) -> Value:
    return expand(build, x, build.sizes(other))


@spelled(F.pixel_shuffle, torch.pixel_shuffle, aten.pixel_shuffle.default)
def pixel_shuffle(build: Builder, x: Value, upscale_factor: int) -> Value:
    return build.call(F.pixel_shuffle, x, upscale_factor=int(upscale_factor))


@spelled(F.pixel_unshuffle, torch.pixel_unshuffle, aten.pixel_unshuffle.default)
def pixel_unshuffle(build: Builder, x: Value, downscale_factor: int) -> Value:
    return build.call(F.pixel_unshuffle, x, downscale_factor=int(downscale_factor))


@spelled(F.channel_shuffle, torch.channel_shuffle, aten.channel_shuffle.default)
def channel_shuffle(build: Builder, x: Value, groups: int) -> Value:
    batch, channels, *image = build.sizes(x)
    apart = reshape(build, x, (batch, groups, channels // groups, *image))
    return reshape(build, transpose(build, apart, 1, 2), (batch, channels, *image))
