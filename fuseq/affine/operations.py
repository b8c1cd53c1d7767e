"""Canonical operations as steps of the algebra: one rule for each op that can be affine.

A rule gets the forms of its operands and returns the form of its result, or raises
`RefusedError`. Ops without a rule, and products of two data values, are boundaries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fuseq import ops
from fuseq.affine.axis import Axis
from fuseq.affine.form import LinForm
from fuseq.affine.refusal import RefusedError
from fuseq.program import Program

Forms = Mapping[fx.Node, LinForm]
Rule = Callable[[Program, fx.Node, Forms], LinForm]

copy_into = torch.ops.aten.copy.default
expand = torch.ops.aten.expand.default

_TO_THE_END = 2**31


def constant_of(value: Any) -> fx.Node | None:
    """The `get_attr` node behind an operand, repeated over positions or not; None for data."""
    if not isinstance(value, fx.Node):
        return None
    if value.op == "get_attr":
        return value
    return constant_of(value.args[0]) if value.target is expand else None


def is_data(value: Any) -> bool:
    """Whether an operand depends on the values of the input: no constant, no size."""
    return (
        isinstance(value, fx.Node)
        and constant_of(value) is None
        and value.target not in ops.SHAPE_ARITHMETIC
    )


def boundary(program: Program, node: fx.Node) -> RefusedError | None:
    """Why a node ends every region, or None if the algebra has a rule for it."""
    name = ops.name_of(program, node)
    if name not in RULES:
        return RefusedError("nonlinear", f"{name} is not an affine operation on maps")
    if len(node.meta.get("shape", ())) != 4:
        return RefusedError("layout", f"the result of {name} is not a map of rank 4")
    if name in ("mul", "div"):
        data = [a for a in node.args if is_data(a)]
        if len(data) > 1 or (name == "div" and not is_data(node.args[0])):
            return RefusedError("nonlinear", f"{name} of two values that depend on the input")
    if name == "batch_norm" and getattr(program.get(node), "running_mean", None) is None:
        return RefusedError("nonlinear", "a batch norm without running statistics")
    return None


def operands(node: fx.Node) -> list[fx.Node]:
    """Data operands whose values a node reads, not just their size."""
    if node.target is copy_into:
        return []
    return [n for n in node.all_input_nodes if is_data(n)]


def form_of(program: Program, node: fx.Node, forms: Forms) -> LinForm:
    """Form of a node from the forms of its operands.

    Args:
        program: that holds the node.
        node: for which `boundary` is None.
        forms: of each node in `operands(node)`.

    Raises:
        RefusedError: ring, border-bias, pad-mode, ceil-mode, count-include-pad, stride-mismatch,
            size-mismatch, layout.
    """
    return RULES[ops.name_of(program, node)](program, node, forms)


def _convolution(program: Program, node: fx.Node, forms: Forms) -> LinForm:
    conv = program.get(node)
    assert isinstance(conv, nn.Conv2d)
    if conv.padding_mode != "zeros":
        raise RefusedError(
            "pad-mode", f"{conv.padding_mode} padding repeats the input", "pad with zeros"
        )
    if isinstance(conv.padding, str):
        raise RefusedError("layout", f"padding {conv.padding!r} is not a number")
    vertical, horizontal = (
        Axis.window(
            conv.kernel_size[i],
            stride=conv.stride[i],
            before=conv.padding[i],
            after=conv.padding[i],
            dilation=conv.dilation[i],
        )
        for i in (0, 1)
    )
    form = _operand(forms, node)
    bias = None if conv.bias is None else conv.bias.detach()
    return form.convolved(conv.weight.detach(), bias, conv.groups, (vertical, horizontal))


def _batch_norm(program: Program, node: fx.Node, forms: Forms) -> LinForm:
    norm = program.get(node)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return _operand(forms, node).scaled(scale).shifted(shift)


def _add(program: Program, node: fx.Node, forms: Forms) -> LinForm:
    a, b = node.args
    return _sum(program, forms, a, b, 1.0)


def _sub(program: Program, node: fx.Node, forms: Forms) -> LinForm:
    a, b = node.args
    return _sum(program, forms, a, b, -1.0)


def _sum(
    program: Program, forms: Forms, a: fx.node.Argument, b: fx.node.Argument, sign: float
) -> LinForm:
    """`a + sign * b`, where at most one operand is a constant."""
    if not is_data(a):
        form = _form(forms, b)
        return form.scaled(sign).shifted(_per_channel(program, a, form.channels))
    if not is_data(b):
        form = _form(forms, a)
        return form.shifted(sign * _per_channel(program, b, form.channels))
    return _form(forms, a).plus(_form(forms, b).scaled(sign) if sign != 1 else _form(forms, b))


def _mul(program: Program, node: fx.Node, forms: Forms) -> LinForm:
    a, b = node.args
    data, constant = (a, b) if is_data(a) else (b, a)
    form = _form(forms, data)
    return form.scaled(_per_channel(program, constant, form.channels))


def _div(program: Program, node: fx.Node, forms: Forms) -> LinForm:
    form = _form(forms, node.args[0])
    return form.scaled(1 / _per_channel(program, node.args[1], form.channels))


def _concat(program: Program, node: fx.Node, forms: Forms) -> LinForm:
    if node.kwargs["dim"] not in (1, -3):
        raise RefusedError("layout", f"concatenation along dim {node.kwargs['dim']}")
    parts = node.args[0]
    assert isinstance(parts, list | tuple)
    if not all(is_data(part) for part in parts):
        raise RefusedError("layout", "a constant is concatenated", "pad the channels instead")
    return LinForm.concatenated([_form(forms, part) for part in parts])


def _avg_pool(program: Program, node: fx.Node, forms: Forms) -> LinForm:
    size, stride, padding = _attributes(node, "kernel_size", "stride", "padding")
    if node.kwargs["ceil_mode"] and stride != (1, 1):
        raise RefusedError(
            "ceil-mode", "average windows may hang over the border", "use ceil_mode=False"
        )
    divisor, whole = _attributes(node, "divisor_override", "count_include_pad")
    if any(padding) and not whole and divisor is None:
        raise RefusedError(
            "count-include-pad",
            "the average divides by fewer values at borders",
            "use count_include_pad=True, or no padding",
        )
    form = _operand(forms, node)
    area = divisor or size[0] * size[1]
    weight = torch.full((form.channels, 1, *size), 1 / area, dtype=torch.float64)
    vertical, horizontal = (
        Axis.window(k, stride=s, before=p, after=p)
        for k, s, p in zip(size, stride, padding, strict=True)
    )
    return form.convolved(weight, None, form.channels, (vertical, horizontal))


def _pad(program: Program, node: fx.Node, forms: Forms) -> LinForm:
    amounts, mode, value = _attributes(node, "pad", "mode", "value")
    if not all(isinstance(n, int) for n in amounts):
        raise RefusedError("layout", "the padding depends on the input size", "pad by numbers")
    if any(amounts[4:]):
        raise RefusedError("layout", "channels are padded")
    if mode != "constant":
        raise RefusedError("pad-mode", f"{mode} padding repeats the input", "pad with zeros")
    left, right, top, bottom = (*amounts, 0, 0)[:4]
    axes = (Axis.window(1, before=top, after=bottom), Axis.window(1, before=left, after=right))
    framed = any(user.target is ops.slice_scatter for user in node.users)
    return _operand(forms, node).padded(axes, value, framed=framed)


def _slice(program: Program, node: fx.Node, forms: Forms) -> LinForm:
    form = _operand(forms, node)
    dim, start, end, step = _attributes(node, "dim", "start", "end", "step")
    if not all(isinstance(n, int) for n in (start, end, step)):
        raise RefusedError("layout", "the slice depends on the input size", "slice by numbers")
    dim %= 4
    if dim == 1:
        return form.channels_taken(torch.arange(form.channels)[start:end:step])
    if dim == 0:
        raise RefusedError("layout", "a slice of the batch")
    moves = start < 0 or 0 <= end < _TO_THE_END
    if moves and form.size:
        length = form.axes[dim - 2].size(form.size[dim - 2])
        start, end, _ = slice(start, end).indices(length)
        end -= length
        form = replace(form, rules=form.rules | {"captured size"})
    elif moves:
        raise RefusedError(
            "size-mismatch",
            f"the slice {start}:{end} is another part of the map at every size",
            "count the start from the beginning and the end from the end",
        )
    window = Axis.window(1, stride=step, before=-start, after=min(end, 0))
    whole = Axis.window(1)
    return form.padded((window, whole) if dim == 2 else (whole, window), 0.0)


def _slice_scatter(program: Program, node: fx.Node, forms: Forms) -> LinForm:
    form, source = _operand(forms, node), node.args[1]
    dim, start, end, step = _attributes(node, "dim", "start", "end", "step")
    if isinstance(source, fx.Node) and source.target is copy_into:
        source = source.args[1]
    constant = constant_of(source)
    if constant is None:
        raise RefusedError("layout", "values that depend on the input are written into a map")
    if not isinstance(start, int) or not isinstance(end, int) or step != 1 or dim not in (2, 3):
        raise RefusedError("layout", "a constant is written over other than rows or columns")
    rounding = torch.finfo(program.constant(constant).dtype).eps
    value = _per_channel(program, constant, form.channels, repeated=True)
    return form.overwritten(dim, start, None if end >= _TO_THE_END else end, value, rounding)


def _copy(program: Program, node: fx.Node, forms: Forms) -> LinForm:
    raise RefusedError("layout", "a constant is copied over a map")


def _pixel_unshuffle(program: Program, node: fx.Node, forms: Forms) -> LinForm:
    form, (r,) = _operand(forms, node), _attributes(node, "downscale_factor")
    corner = torch.eye(r * r, dtype=torch.float64).view(r * r, 1, r, r)
    axis = Axis.window(r, stride=r)
    return form.convolved(corner.repeat(form.channels, 1, 1, 1), None, form.channels, (axis, axis))


RULES: dict[str, Rule] = {
    "conv2d": _convolution,
    "batch_norm": _batch_norm,
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "concat": _concat,
    "avg_pool": _avg_pool,
    "pad": _pad,
    "pad_value": _pad,
    "slice": _slice,
    "slice_scatter": _slice_scatter,
    "pixel_unshuffle": _pixel_unshuffle,
    "foreign:copy.default": _copy,
}


def _form(forms: Forms, value: fx.node.Argument) -> LinForm:
    assert isinstance(value, fx.Node)
    return forms[value]


def _operand(forms: Forms, node: fx.Node) -> LinForm:
    return _form(forms, node.args[0])


def _attributes(node: fx.Node, *names: str) -> list[Any]:
    return [node.kwargs[name] for name in names]


def _per_channel(
    program: Program, value: fx.node.Argument, channels: int, *, repeated: bool = False
) -> Tensor:
    """A constant operand as one number a channel: float64 `(channels,)`.

    Args:
        program: that holds the constant.
        value: a number or a `get_attr` node.
        channels: how many numbers to give.
        repeated: take a constant that spells the same number at every position.

    Raises:
        RefusedError: layout if the constant varies over the map, adds channels or is a size.
    """
    named = constant_of(value)
    if named is None:
        if not isinstance(value, float | int):
            raise RefusedError("layout", "a factor that is a size of the input", "use a number")
        return torch.full((channels,), float(value), dtype=torch.float64)
    constant = program.constant(named).detach().double()
    if constant.dim() <= 4:
        aligned = constant.view((1,) * (4 - constant.dim()) + tuple(constant.shape))
        flat = aligned.movedim(1, 0).flatten(1)
        same = bool((flat == flat[:, :1]).all()) if repeated else flat.shape[1] == 1
        if len(flat) in (1, channels) and same:
            return flat[:, 0].expand(channels)
    raise RefusedError(
        "layout",
        f"a constant of shape {tuple(constant.shape)} is not one number a channel",
        "use a constant of shape (channels, 1, 1)",
    )
