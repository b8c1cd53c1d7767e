"""Every way PyTorch code spells an op, and its one canonical form.

Each rule below is registered for the functions, methods (by name) and aten overloads that mean
the same thing; it builds the canonical node. A new spelling is taught here and nowhere else.
Values a rule receives are graph nodes, constant tensors, numbers, or tuples of these; an op whose
operands are all constants never reaches a rule (`Builder.call_target` computes it).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fuseq import ops
from fuseq.build import Builder, Rule, Value

aten = torch.ops.aten
RULES: dict[Any, Rule] = {}


def spelled(*targets: Any) -> Callable[[Rule], Rule]:
    """Register a rule for call targets: functions, aten overloads, or method names."""

    def register(rule: Rule) -> Rule:
        for target in dict.fromkeys(targets):
            if target in RULES:
                raise ValueError(f"{target} has two spelling rules")
            RULES[target] = rule
        return rule

    return register


def _pair(value: Any) -> tuple[Any, Any]:
    items = tuple(value) if isinstance(value, Sequence) else (value,)
    return (items[0], items[0]) if len(items) == 1 else (items[0], items[1])


# --- values that stay what they are -------------------------------------------------------------


@spelled(
    aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default,
    aten.lift_fresh_copy.default, "clone", "contiguous", "detach", torch.clone,
)  # fmt: skip
def identity(build: Builder, x: Value, *_: Any, **__: Any) -> Value:
    return x


@spelled(aten.dropout.default, aten.feature_dropout.default, F.dropout, F.dropout2d, torch.dropout)
def dropout(
    build: Builder, x: Value, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Value:
    if training and p > 0:
        raise ValueError("dropout is active: call model.eval(), or pass training=self.training")
    return x


@spelled(operator.getitem, "__getitem__")
def getitem(build: Builder, x: Value, index: Any) -> Value:
    if isinstance(x, tuple | list):
        return x[index]
    if not (isinstance(x, fx.Node) and build.is_tensor(x)):
        return build.foreign(operator.getitem, x, index)
    items = index if isinstance(index, tuple) else (index,)
    rank = len(build.shape(x))
    if Ellipsis in items:
        at = items.index(Ellipsis)
        fill = (slice(None),) * (rank - (len(items) - 1))
        items = items[:at] + fill + items[at + 1 :]
    if not all(isinstance(item, slice) for item in items):
        return build.foreign(operator.getitem, x, index)
    for dim, item in enumerate(items):
        x = take(build, x, dim, item.start, item.stop, item.step or 1)
    return x


# --- convolutions, linear layers and norms ------------------------------------------------------


@spelled(aten.conv2d.default, aten.conv2d.padding, F.conv2d, torch.conv2d)
def conv2d(
    build: Builder, x: Value, weight: Value, bias: Value = None,
    stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Value:  # fmt: skip
    if not isinstance(weight, Tensor) or len(build.shape(x)) != 4:
        return build.foreign(
            aten.conv2d.default,
            x,
            weight,
            bias,
            _pair(stride),
            _pair(padding),
            _pair(dilation),
            groups,
        )
    kernel, dilation = tuple(weight.shape[2:]), _pair(dilation)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(t % 2 for t in total):
            (th, tw) = total
            x = pad(build, x, (tw // 2, tw - tw // 2, th // 2, th - th // 2))
            total = [0, 0]
        padding = tuple(t // 2 for t in total)
    elif padding == "valid":
        padding = 0
    conv = nn.Conv2d(
        weight.shape[1] * groups, weight.shape[0], kernel, _pair(stride), _pair(padding),
        dilation, groups, bias=bias is not None, device="meta",
    )  # fmt: skip
    return build.module(conv, {"weight": weight, "bias": bias}, x)


@spelled(aten.conv_transpose2d.input, F.conv_transpose2d, torch.conv_transpose2d)
def conv_transpose2d(
    build: Builder, x: Value, weight: Value, bias: Value = None, stride: Any = 1,
    padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Value:  # fmt: skip
    if not isinstance(weight, Tensor):
        return build.foreign(
            aten.conv_transpose2d.input, x, weight, bias, _pair(stride), _pair(padding),
            _pair(output_padding), groups, _pair(dilation),
        )  # fmt: skip
    conv = nn.ConvTranspose2d(
        weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:]), _pair(stride),
        _pair(padding), _pair(output_padding), groups, bias is not None, _pair(dilation), device="meta",
    )  # fmt: skip
    return build.module(conv, {"weight": weight, "bias": bias}, x)


@spelled(aten.convolution.default)
def convolution(
    build: Builder, x: Value, weight: Value, bias: Value, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> Value:  # fmt: skip
    if transposed:
        return conv_transpose2d(
            build, x, weight, bias, stride, padding, output_padding, groups, dilation
        )
    return conv2d(build, x, weight, bias, stride, padding, dilation, groups)


@spelled(aten.linear.default, F.linear)
def linear(build: Builder, x: Value, weight: Value, bias: Value = None) -> Value:
    if not isinstance(weight, Tensor):
        return build.foreign(aten.linear.default, x, weight, bias)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    return build.module(layer, {"weight": weight, "bias": bias}, x)


@spelled(aten.addmm.default)
def addmm(
    build: Builder, bias: Value, x: Value, weight: Value, beta: float = 1, alpha: float = 1
) -> Value:
    if isinstance(weight, Tensor) and isinstance(bias, Tensor) and beta == 1 and alpha == 1:
        return linear(build, x, weight.t(), bias)
    return build.foreign(aten.addmm.default, bias, x, weight)


def _batch_norm(
    build: Builder, x: Value, weight: Value, bias: Value, mean: Tensor, var: Tensor, eps: float
) -> Value:
    kind = nn.BatchNorm2d if len(build.shape(x)) == 4 else nn.BatchNorm1d
    channels = mean.shape[0]
    norm = kind(channels, eps=eps, device="meta")
    weight = torch.ones_like(mean) if weight is None else weight
    bias = torch.zeros_like(mean) if bias is None else bias
    state = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    return build.module(norm, {**state, "num_batches_tracked": torch.tensor(0)}, x)


@spelled(aten._native_batch_norm_legit_no_training.default)
def native_batch_norm(
    build: Builder,
    x: Value,
    weight: Value,
    bias: Value,
    mean: Any,
    var: Any,
    momentum: float,
    eps: float,
) -> Value:
    return (_batch_norm(build, x, weight, bias, mean, var, eps), None, None)


@spelled(F.batch_norm)
def functional_batch_norm(
    build: Builder, x: Value, running_mean: Any, running_var: Any, weight: Value = None,
    bias: Value = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Value:  # fmt: skip
    if training or running_mean is None:
        raise ValueError("a batch norm uses batch statistics: it has no running statistics to fold")
    return _batch_norm(build, x, weight, bias, running_mean, running_var, eps)


@spelled(aten.instance_norm.default, F.instance_norm)
def instance_norm(
    build: Builder, x: Value, weight: Value = None, bias: Value = None, running_mean: Value = None,
    running_var: Value = None, use_input_stats: bool = True, momentum: float = 0.1,
    eps: float = 1e-5, cudnn_enabled: bool = True,
) -> Value:  # fmt: skip
    if running_mean is not None and not use_input_stats:
        return _batch_norm(build, x, weight, bias, running_mean, running_var, eps)
    norm = nn.InstanceNorm2d(build.shape(x)[1], eps=eps, affine=weight is not None, device="meta")
    return build.module(norm, {"weight": weight, "bias": bias}, x)


@spelled(aten.group_norm.default, F.group_norm)
def group_norm(
    build: Builder, x: Value, num_groups: int, weight: Value = None, bias: Value = None,
    eps: float = 1e-5, cudnn_enabled: bool = True,
) -> Value:  # fmt: skip
    norm = nn.GroupNorm(
        num_groups, build.shape(x)[1], eps, affine=weight is not None, device="meta"
    )
    return build.module(norm, {"weight": weight, "bias": bias}, x)


@spelled(aten.native_group_norm.default)
def native_group_norm(
    build: Builder,
    x: Value,
    weight: Value,
    bias: Value,
    n: Any,
    c: Any,
    hw: Any,
    groups: int,
    eps: float,
) -> Value:
    return (group_norm(build, x, groups, weight, bias, eps), None, None)


@spelled(aten.layer_norm.default, F.layer_norm)
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


@spelled(aten.prelu.default, aten._prelu_kernel.default, F.prelu, torch.prelu)
def prelu(build: Builder, x: Value, weight: Value) -> Value:
    if not isinstance(weight, Tensor):
        return build.foreign(aten.prelu.default, x, weight)
    layer = nn.PReLU(weight.numel(), device="meta")
    return build.module(layer, {"weight": weight.reshape(-1)}, x)


# --- arithmetic ---------------------------------------------------------------------------------


def _binary(function: Callable[..., Any], integer: Callable[..., Any]) -> Rule:
    def rule(build: Builder, a: Value, b: Value, *, alpha: float = 1, **_: Any) -> Value:
        if not (build.is_tensor(a) or build.is_tensor(b)):
            return build.shape_arithmetic(integer, a, b)
        if alpha != 1:
            b = build.call(torch.mul, b, float(alpha))
        if function in (torch.add, torch.mul) and not isinstance(a, fx.Node):
            a, b = b, a
        return build.call(function, a, b)

    return rule


spelled(
    torch.add, operator.add, operator.iadd, "add", "add_", "__add__", "__radd__", "__iadd__",
    aten.add.Tensor, aten.add.Scalar, aten.add_.Tensor, aten.add_.Scalar,
)(_binary(torch.add, operator.add))  # fmt: skip
spelled(
    torch.sub, operator.sub, operator.isub, torch.subtract, "sub", "sub_", "__sub__",
    aten.sub.Tensor, aten.sub.Scalar, aten.sub_.Tensor,
)(_binary(torch.sub, operator.sub))  # fmt: skip
spelled(
    torch.mul, operator.mul, operator.imul, torch.multiply, "mul", "mul_", "multiply", "__mul__",
    "__rmul__", aten.mul.Tensor, aten.mul.Scalar, aten.mul_.Tensor, aten.mul_.Scalar,
)(_binary(torch.mul, operator.mul))  # fmt: skip
spelled(
    torch.div, operator.truediv, operator.itruediv, torch.true_divide, "div", "div_",
    "__truediv__", aten.div.Tensor, aten.div.Scalar, aten.div_.Tensor,
)(_binary(torch.div, operator.truediv))  # fmt: skip


@spelled(aten.rsub.Scalar, aten.rsub.Tensor, torch.rsub)
def rsub(build: Builder, a: Value, b: Value, alpha: float = 1) -> Value:
    return RULES[torch.sub](build, b, a if alpha == 1 else build.call(torch.mul, a, float(alpha)))


@spelled(torch.neg, operator.neg, "neg", aten.neg.default)
def neg(build: Builder, x: Value) -> Value:
    return build.call(torch.mul, x, -1.0)


@spelled(torch.matmul, operator.matmul, torch.bmm, "matmul", "bmm", "__matmul__",
         aten.matmul.default, aten.bmm.default, aten.mm.default, torch.mm)  # fmt: skip
def matmul(build: Builder, a: Value, b: Value) -> Value:
    if isinstance(b, Tensor) and b.dim() == 2:
        return linear(build, a, b.t())
    return build.call(torch.matmul, a, b)


@spelled(torch.cat, torch.concat, aten.cat.default)
def concat(build: Builder, tensors: Sequence[Value], dim: int = 0) -> Value:
    if len(tensors) == 1:
        return tensors[0]
    rank = len(build.shape(next(t for t in tensors if build.is_tensor(t))))
    return build.call(torch.cat, tuple(build.tensor(t) for t in tensors), dim=dim % rank)


# --- activations --------------------------------------------------------------------------------


def _unary(function: Callable[..., Any]) -> Rule:
    def rule(build: Builder, x: Value, inplace: bool = False, **_: Any) -> Value:
        return build.call(function, x)

    return rule


spelled(torch.relu, F.relu, torch.relu_, "relu", "relu_", aten.relu.default, aten.relu_.default)(
    _unary(torch.relu)
)
spelled(torch.sigmoid, F.sigmoid, "sigmoid", "sigmoid_", aten.sigmoid.default)(
    _unary(torch.sigmoid)
)
spelled(torch.tanh, F.tanh, "tanh", "tanh_", aten.tanh.default)(_unary(torch.tanh))
spelled(F.hardsigmoid, aten.hardsigmoid.default)(_unary(F.hardsigmoid))
spelled(F.hardswish, aten.hardswish.default, aten.hardswish_.default)(_unary(F.hardswish))
spelled(F.silu, aten.silu.default, aten.silu_.default)(_unary(F.silu))


@spelled(F.gelu, aten.gelu.default)
def gelu(build: Builder, x: Value, approximate: str = "none") -> Value:
    return build.call(F.gelu, x, approximate=approximate)


@spelled(F.leaky_relu, aten.leaky_relu.default, aten.leaky_relu_.default)
def leaky_relu(
    build: Builder, x: Value, negative_slope: float = 0.01, inplace: bool = False
) -> Value:
    return build.call(F.leaky_relu, x, negative_slope=float(negative_slope))


@spelled(torch.clamp, torch.clip, "clamp", "clamp_", "clip", aten.clamp.default)
def clamp(build: Builder, x: Value, min: Any = None, max: Any = None) -> Value:
    if isinstance(min, fx.Node | Tensor) or isinstance(max, fx.Node | Tensor):
        return build.foreign(aten.clamp.Tensor, x, min, max)
    if min == 0 and max is None:
        return build.call(torch.relu, x)
    bounds = {
        "min": None if min is None else float(min),
        "max": None if max is None else float(max),
    }
    return build.call(torch.clamp, x, **bounds)


@spelled(F.relu6, aten.relu6.default)
def relu6(build: Builder, x: Value, inplace: bool = False) -> Value:
    return clamp(build, x, 0.0, 6.0)


@spelled(F.hardtanh, aten.hardtanh.default, aten.hardtanh_.default)
def hardtanh(
    build: Builder, x: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Value:
    return clamp(build, x, min_val, max_val)


@spelled(aten.clamp_min.default, "clamp_min")
def clamp_min(build: Builder, x: Value, min: float) -> Value:
    return clamp(build, x, min)


@spelled(aten.clamp_max.default, "clamp_max")
def clamp_max(build: Builder, x: Value, max: float) -> Value:
    return clamp(build, x, None, max)


@spelled(F.softmax, torch.softmax, "softmax", aten.softmax.int, aten._softmax.default)
def softmax(build: Builder, x: Value, dim: int, *_: Any, **__: Any) -> Value:
    return build.call(F.softmax, x, dim=dim % len(build.shape(x)))


# --- pooling and resizing -----------------------------------------------------------------------


@spelled(
    F.max_pool2d, torch.max_pool2d, aten.max_pool2d.default, torch.nn.functional.boolean_dispatch
)
def max_pool(
    build: Builder, x: Value, kernel_size: Any, stride: Any = None, padding: Any = 0,
    dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False,
) -> Value:  # fmt: skip
    return build.call(
        F.max_pool2d, x, kernel_size=_pair(kernel_size), stride=_pair(stride or kernel_size),
        padding=_pair(padding), dilation=_pair(dilation), ceil_mode=bool(ceil_mode),
    )  # fmt: skip


@spelled(aten.max_pool2d_with_indices.default)
def max_pool_with_indices(build: Builder, x: Value, *args: Any, **kwargs: Any) -> Value:
    return (max_pool(build, x, *args, **kwargs), None)


@spelled(F.avg_pool2d, aten.avg_pool2d.default)
def avg_pool(
    build: Builder, x: Value, kernel_size: Any, stride: Any = None, padding: Any = 0,
    ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: int | None = None,
) -> Value:  # fmt: skip
    return build.call(
        F.avg_pool2d, x, kernel_size=_pair(kernel_size), stride=_pair(stride or kernel_size),
        padding=_pair(padding), ceil_mode=bool(ceil_mode),
        count_include_pad=bool(count_include_pad), divisor_override=divisor_override,
    )  # fmt: skip


@spelled(F.adaptive_avg_pool2d, aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default)
def adaptive_avg_pool(build: Builder, x: Value, output_size: Any) -> Value:
    height, width = _pair(output_size)
    if (height, width) == (1, 1):
        return build.call(torch.mean, x, dim=(2, 3), keepdim=True)
    size = build.shape(x)
    return build.call(F.adaptive_avg_pool2d, x, output_size=(height or size[2], width or size[3]))


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
    if antialias or mode not in ("nearest", "bilinear") or len(build.shape(x)) != 4:
        return build.foreign(
            F.interpolate, x, size=size, scale_factor=scale_factor, mode=mode,
            align_corners=align_corners, antialias=antialias,
        )  # fmt: skip
    return build.call(
        F.interpolate, x, size=None if size is None else _pair(size),
        scale_factor=None if scale_factor is None else tuple(float(s) for s in _pair(scale_factor)),
        mode=mode, align_corners=bool(align_corners) if mode == "bilinear" else None,
    )  # fmt: skip


@spelled(aten.upsample_nearest2d.vec)
def upsample_nearest(build: Builder, x: Value, size: Any, scale_factors: Any) -> Value:
    return interpolate(build, x, size, scale_factors)


@spelled(aten.upsample_bilinear2d.vec)
def upsample_bilinear(
    build: Builder, x: Value, size: Any, align_corners: bool, scale_factors: Any
) -> Value:
    return interpolate(build, x, size, scale_factors, "bilinear", align_corners)


# --- moving data --------------------------------------------------------------------------------


@spelled(F.pixel_shuffle, torch.pixel_shuffle, aten.pixel_shuffle.default)
def pixel_shuffle(build: Builder, x: Value, upscale_factor: int) -> Value:
    return build.call(F.pixel_shuffle, x, upscale_factor=int(upscale_factor))


@spelled(F.pixel_unshuffle, torch.pixel_unshuffle, aten.pixel_unshuffle.default)
def pixel_unshuffle(build: Builder, x: Value, downscale_factor: int) -> Value:
    return build.call(F.pixel_unshuffle, x, downscale_factor=int(downscale_factor))


@spelled(F.pad, aten.pad.default)
def pad(
    build: Builder, x: Value, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Value:
    if not any(p != 0 for p in pad):
        return x
    return build.call(F.pad, x, pad=tuple(pad), mode=mode, value=float(value or 0.0))


@spelled(aten.constant_pad_nd.default)
def constant_pad(build: Builder, x: Value, amounts: Sequence[int], value: float = 0.0) -> Value:
    return pad(build, x, amounts, "constant", value)


@spelled(aten.reflection_pad2d.default)
def reflection_pad(build: Builder, x: Value, amounts: Sequence[int]) -> Value:
    return pad(build, x, amounts, "reflect")


@spelled(aten.replication_pad2d.default)
def replication_pad(build: Builder, x: Value, amounts: Sequence[int]) -> Value:
    return pad(build, x, amounts, "replicate")


@spelled(aten.slice.Tensor)
def take(
    build: Builder, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    size = build.shape(x)[dim]
    open_end = end is None or (isinstance(end, int) and end >= size and end >= 2**31)
    if (start is None or start == 0) and open_end and step == 1:
        return x
    return build.call(
        ops.slice_tensor, x, dim=dim % len(build.shape(x)), start=0 if start is None else start,
        end=2**63 - 1 if open_end else end, step=step,
    )  # fmt: skip


@spelled(torch.narrow, "narrow", aten.narrow.default)
def narrow(build: Builder, x: Value, dim: int, start: Any, length: Any) -> Value:
    return take(build, x, dim, start, build.shape_arithmetic(operator.add, start, length))


def _parts(build: Builder, x: Value, sizes: Sequence[int], dim: int) -> Value:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(take(build, x, dim, s, s + n) for s, n in zip(starts, sizes, strict=True))


@spelled(torch.split, "split", aten.split.Tensor, aten.split_with_sizes.default)
def split(build: Builder, x: Value, split_size: Any, dim: int = 0) -> Value:
    size = build.shape(x)[dim]
    if isinstance(split_size, int):
        split_size = [min(split_size, size - i) for i in range(0, size, split_size)]
    return _parts(build, x, split_size, dim)


@spelled(torch.chunk, "chunk", aten.chunk.default)
def chunk(build: Builder, x: Value, chunks: int, dim: int = 0) -> Value:
    return split(build, x, -(-build.shape(x)[dim] // chunks), dim)


@spelled(aten.slice_scatter.default, torch.slice_scatter)
def slice_scatter(
    build: Builder,
    x: Value,
    src: Value,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Value:
    whole = (start is None or start == 0) and (end is None or end >= 2**31) and step == 1
    if whole and build.shape(x) == build.shape(src):
        return src
    return build.call(
        ops.slice_scatter, build.tensor(x), build.tensor(src), dim=dim,
        start=0 if start is None else start, end=2**63 - 1 if end is None else end, step=step,
    )  # fmt: skip


@spelled(aten.copy.default)
def copy(build: Builder, x: Value, src: Value, non_blocking: bool = False) -> Value:
    if build.shape(x) == build.shape(src):
        return src
    return build.foreign(aten.copy.default, build.tensor(x), build.tensor(src))


@spelled(torch.reshape, "reshape", "view", aten.view.default, aten.reshape.default,
         aten._unsafe_view.default)  # fmt: skip
def reshape(build: Builder, x: Value, *shape: Any) -> Value:
    target = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], Sequence) else tuple(shape)
    if target == build.shape(x) and all(isinstance(size, int) for size in target):
        return x
    return build.call(torch.reshape, x, shape=target)


@spelled(torch.flatten, "flatten", aten.flatten.using_ints)
def flatten(build: Builder, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    rank = len(build.shape(x))
    start, end = start_dim % rank, end_dim % rank
    if start >= end:
        return x
    size = [build.size(x, d) for d in range(rank)]
    return build.call(torch.reshape, x, shape=(*size[:start], -1, *size[end + 1 :]))


@spelled(torch.permute, "permute", aten.permute.default)
def permute(build: Builder, x: Value, *dims: Any) -> Value:
    order = tuple(dims[0]) if len(dims) == 1 and isinstance(dims[0], Sequence) else tuple(dims)
    order = tuple(d % len(order) for d in order)
    return x if order == tuple(range(len(order))) else build.call(torch.permute, x, dims=order)


@spelled(torch.transpose, "transpose", aten.transpose.int)
def transpose(build: Builder, x: Value, a: int, b: int) -> Value:
    order = list(range(len(build.shape(x))))
    order[a], order[b] = order[b], order[a]
    return permute(build, x, order)


@spelled(torch.t, "t", aten.t.default)
def t(build: Builder, x: Value) -> Value:
    return transpose(build, x, 0, 1)


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


# --- sizes --------------------------------------------------------------------------------------


@spelled(aten.sym_size.int, "size")
def size(build: Builder, x: Value, dim: int | None = None) -> Value:
    if dim is None:
        return tuple(build.size(x, d) for d in range(len(build.shape(x))))
    return build.size(x, dim)


@spelled("dim", "ndimension")
def rank(build: Builder, x: Value) -> Value:
    return len(build.shape(x))


@spelled(getattr)
def attribute(build: Builder, x: Value, name: str) -> Value:
    if name == "shape":
        return size(build, x)
    if name in ("ndim", "dtype", "device"):
        return len(build.shape(x)) if name == "ndim" else getattr(build.example(x), name)
    if name == "T":
        return transpose(build, x, 0, 1)
    return build.foreign(getattr, x, name)


@spelled(operator.floordiv, "__floordiv__")
def floordiv(build: Builder, a: Value, b: Value) -> Value:
    if build.is_tensor(a) or build.is_tensor(b):
        return build.foreign(operator.floordiv, a, b)
    return build.shape_arithmetic(operator.floordiv, a, b)


@spelled("float", "to", "type", "double", aten._to_copy.default, aten.to.dtype)
def convert(build: Builder, x: Value, *args: Any, **kwargs: Any) -> Value:
    dtype = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.dtype)), None)
    wanted = dtype or build.example(x).dtype
    if build.example(x).dtype == wanted:
        return x
    return build.foreign(aten._to_copy.default, x, dtype=wanted)
