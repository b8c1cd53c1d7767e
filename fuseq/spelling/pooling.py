"""Pooling, means and resizing."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from fuseq.build import Builder, Value
from fuseq.spelling.registry import pair, spelled

aten = torch.ops.aten


@spelled(F.max_pool2d, torch.max_pool2d, aten.max_pool2d.default)
def max_pool(
    build: Builder, x: Value, kernel_size: Any, stride: Any = None, padding: Any = 0,
    dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False,
) -> Value:  # fmt: skip
    return build.call(
        F.max_pool2d, x, kernel_size=pair(kernel_size), stride=pair(stride or kernel_size),
        padding=pair(padding), dilation=pair(dilation), ceil_mode=bool(ceil_mode),
    )  # fmt: skip


@spelled(aten.max_pool2d_with_indices.default)
def max_pool_with_indices(build: Builder, x: Value, *args: Any, **kwargs: Any) -> Value:
    both = build.foreign(aten.max_pool2d_with_indices.default, x, *args, **kwargs)
    return (max_pool(build, x, *args, **kwargs), build.foreign(operator.getitem, both, 1))


@spelled(F.avg_pool2d, aten.avg_pool2d.default)
def avg_pool(
    build: Builder, x: Value, kernel_size: Any, stride: Any = None, padding: Any = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
) -> Value:  # fmt: skip
    window, whole = pair(kernel_size), build.sizes(x)[-2:]
    if divisor_override is not None and not ceil_mode:
        # Without windows that hang over, another divisor is a factor on the plain average.
        average = avg_pool(build, x, kernel_size, stride, padding)
        return build.call(torch.mul, average, math.prod(window) / divisor_override)
    if window == whole and pair(padding) == (0, 0) and divisor_override is None:
        return mean(build, x, (-2, -1), keepdim=True)
    return build.call(
        F.avg_pool2d, x, kernel_size=window, stride=pair(stride or kernel_size),
        padding=pair(padding), ceil_mode=bool(ceil_mode),
        count_include_pad=bool(count_include_pad), divisor_override=divisor_override,
    )  # fmt: skip


@spelled(F.adaptive_avg_pool2d, aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default)
def adaptive_avg_pool(build: Builder, x: Value, output_size: Any) -> Value:
    wanted = pair(output_size)
    if wanted == (1, 1):
        return mean(build, x, (-2, -1), keepdim=True)
    size = build.sizes(x)[-2:]
    height, width = (own if n is None else n for n, own in zip(wanted, size, strict=True))
    if (height, width) == size:
        return x
    return build.call(F.adaptive_avg_pool2d, x, output_size=(height, width))


@spelled(aten.adaptive_max_pool2d.default)
def adaptive_max_pool_with_indices(build: Builder, x: Value, output_size: Any) -> Value:
    return (build.foreign(F.adaptive_max_pool2d, x, output_size), None)


@spelled(torch.mean, "mean", aten.mean.dim, aten.mean.default)
def mean(
    build: Builder, x: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Value:
    rank = len(build.shape(x))
    dims = range(rank) if dim is None else dim if isinstance(dim, Sequence) else (dim,)
    return build.call(
        torch.mean, x, dim=tuple(sorted(d % rank for d in dims)), keepdim=bool(keepdim)
    )


@spelled(F.interpolate)
def interpolate(
    build: Builder, x: Value, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
    align_corners: bool | None = None, recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Value:  # fmt: skip
    factors = None if scale_factor is None else tuple(float(s) for s in pair(scale_factor))
    # Recomputing changes only factors that do not divide the size.
    recomputes = recompute_scale_factor and not all(s.is_integer() for s in factors or ())
    if recomputes:
        raise ValueError("recompute_scale_factor with a factor that is no whole number")
    spatial = len(build.shape(x)) - 2
    if antialias or mode not in ("nearest", "bilinear") or spatial != 2:
        return _other_resize(build, x, size, scale_factor, mode, align_corners, antialias)
    return build.call(
        F.interpolate, x, size=None if size is None else pair(size), scale_factor=factors,
        mode=mode, align_corners=bool(align_corners) if mode == "bilinear" else None,
    )  # fmt: skip


def _other_resize(
    build: Builder, x: Value, size: Any, scale_factor: Any, mode: str, align_corners: bool | None,
    antialias: bool,
) -> Value:  # fmt: skip
    spatial = len(build.shape(x)) - 2
    if mode == "area":
        if size is None:
            raise ValueError("an area resize by a factor: give the size instead")
        return build.foreign(getattr(F, f"adaptive_avg_pool{spatial}d"), x, size)
    size, factors = (
        None if values is None
        else list(values) if isinstance(values, Sequence) else [values] * spatial
        for values in (size, scale_factor)
    )  # fmt: skip
    factors = factors and [float(factor) for factor in factors]
    if mode.startswith("nearest"):
        exact = "_" if mode == "nearest-exact" else ""
        name = f"{exact}upsample_{mode.replace('-', '_')}{spatial}d"
        return build.foreign(getattr(aten, name).vec, x, size, factors)
    name = f"_upsample_{mode}2d_aa" if antialias else f"upsample_{mode}{spatial}d"
    return build.foreign(getattr(aten, name).vec, x, size, bool(align_corners), factors)


@spelled(aten.upsample_nearest2d.vec)
def upsample_nearest(build: Builder, x: Value, size: Any, scale_factors: Any) -> Value:
    return interpolate(build, x, size, scale_factors)


@spelled(aten.upsample_bilinear2d.vec)
def upsample_bilinear(
    build: Builder, x: Value, size: Any, align_corners: bool, scale_factors: Any
) -> Value:
    return interpolate(build, x, size, scale_factors, "bilinear", align_corners)
