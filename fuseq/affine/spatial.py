"""Rules of the operations that move over the map: windows, padding, cropping, resizing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from fuseq import ops
from fuseq.affine.axis import Axis
from fuseq.affine.form import LinForm
from fuseq.affine.lengths import length_of, read_length
from fuseq.affine.operands import attributes, constant_of, per_channel
from fuseq.affine.polyphase import Form, shuffled, transposed, upsampled
from fuseq.affine.refusal import RefusedError
from fuseq.program import Program

copy_into = torch.ops.aten.copy.default

Forms = Mapping[fx.Node, Form]
Rule = Callable[[Program, fx.Node, Forms], Form]

_TO_THE_END = 2**31


def first(forms: Forms, node: fx.Node) -> Form:
    """Form of a node's first operand."""
    operand = node.args[0]
    assert isinstance(operand, fx.Node)
    return forms[operand]


def is_tokens(form: Form) -> bool:
    """Whether channels are the last dimension."""
    return isinstance(form, LinForm) and form.tokens


def _convolution(program: Program, node: fx.Node, forms: Forms) -> Form:
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
    form = first(forms, node)
    bias = None if conv.bias is None else conv.bias.detach()
    return form.convolved(conv.weight.detach(), bias, conv.groups, (vertical, horizontal))


def _avg_pool(program: Program, node: fx.Node, forms: Forms) -> Form:
    size, stride, padding = attributes(node, "kernel_size", "stride", "padding")
    if node.kwargs["ceil_mode"] and stride != (1, 1):
        raise RefusedError(
            "ceil-mode", "average windows may hang over the border", "use ceil_mode=False"
        )
    divisor, whole = attributes(node, "divisor_override", "count_include_pad")
    if any(padding) and not whole and divisor is None:
        raise RefusedError(
            "count-include-pad",
            "the average divides by fewer values at borders",
            "use count_include_pad=True, or no padding",
        )
    form = first(forms, node)
    area = divisor or size[0] * size[1]
    weight = torch.full((form.channels, 1, *size), 1 / area, dtype=torch.float64)
    vertical, horizontal = (
        Axis.window(k, stride=s, before=p, after=p)
        for k, s, p in zip(size, stride, padding, strict=True)
    )
    return form.convolved(weight, None, form.channels, (vertical, horizontal))


def _pad(program: Program, node: fx.Node, forms: Forms) -> Form:
    amounts, mode, value = attributes(node, "pad", "mode", "value")
    if not all(isinstance(n, int) for n in amounts):
        raise RefusedError("layout", "the padding depends on the input size", "pad by numbers")
    if any(amounts[4:]):
        raise RefusedError("layout", "channels are padded")
    if mode != "constant":
        raise RefusedError("pad-mode", f"{mode} padding repeats the input", "pad with zeros")
    left, right, top, bottom = (*amounts, 0, 0)[:4]
    axes = (Axis.window(1, before=top, after=bottom), Axis.window(1, before=left, after=right))
    framed = any(user.target is ops.slice_scatter for user in node.users)
    return first(forms, node).padded(axes, value, framed=framed)


def _slice(program: Program, node: fx.Node, forms: Forms) -> Form:
    form = first(forms, node)
    dim, start, end, step = attributes(node, "dim", "start", "end", "step")
    rank = len(program.shape(node))
    dim %= rank
    if not isinstance(start, int) or not isinstance(step, int):
        raise RefusedError("layout", "the slice depends on the input size", "slice by numbers")
    if dim == (rank - 1 if is_tokens(form) else 1) and isinstance(end, int):
        return form.channels_taken(torch.arange(form.channels)[start:end:step])
    if dim not in (2, 3) or is_tokens(form):
        raise RefusedError("layout", f"a slice of dim {dim}", "slice channels, rows or columns")
    start, end, form = _ends(form, dim, start, end, forms)
    window = Axis.window(1, stride=step, before=-start, after=min(end, 0))
    whole = Axis.window(1)
    return form.padded((window, whole) if dim == 2 else (whole, window), 0.0)


def _ends(form: Form, dim: int, start: int, end: Any, forms: Forms) -> tuple[int, int, Form]:
    """Start counted from the beginning, end from the end, and the form where that holds."""
    if not isinstance(end, int):
        size = read_length(end, forms)
        distance = size.minus(length_of(form, dim)) if size else None
        if distance is None:
            raise RefusedError(
                "layout",
                "the slice ends at a size that is not this map's for every input",
                "slice by numbers, or to the size of a value in the same region",
            )
        end = distance if distance < 0 else _TO_THE_END
    if start >= 0 and (end < 0 or end >= _TO_THE_END):
        return start, end, form
    if not isinstance(form, LinForm) or not form.size:
        raise RefusedError(
            "size-mismatch",
            f"the slice {start}:{end} is another part of the map at every size",
            "count the start from the beginning and the end from the end",
        )
    length = form.axes[dim - 2].size(form.size[dim - 2])
    start, end, _ = slice(start, end).indices(length)
    return start, end - length, replace(form, rules=form.rules | {"captured size"})


def _slice_scatter(program: Program, node: fx.Node, forms: Forms) -> Form:
    form, source = first(forms, node), node.args[1]
    dim, start, end, step = attributes(node, "dim", "start", "end", "step")
    if isinstance(source, fx.Node) and source.target is copy_into:
        source = source.args[1]
    constant = constant_of(source)
    if constant is None:
        raise RefusedError("layout", "values that depend on the input are written into a map")
    if not isinstance(start, int) or not isinstance(end, int) or step != 1 or dim not in (2, 3):
        raise RefusedError("layout", "a constant is written over other than rows or columns")
    rounding = torch.finfo(program.constant(constant).dtype).eps
    value = per_channel(program, constant, form.channels, repeated=True)
    return form.overwritten(dim, start, None if end >= _TO_THE_END else end, value, rounding)


def _copy(program: Program, node: fx.Node, forms: Forms) -> Form:
    raise RefusedError("layout", "a constant is copied over a map")


def _pixel_unshuffle(program: Program, node: fx.Node, forms: Forms) -> Form:
    form, (r,) = first(forms, node), attributes(node, "downscale_factor")
    corner = torch.eye(r * r, dtype=torch.float64).view(r * r, 1, r, r)
    axis = Axis.window(r, stride=r)
    return form.convolved(corner.repeat(form.channels, 1, 1, 1), None, form.channels, (axis, axis))


def _pixel_shuffle(program: Program, node: fx.Node, forms: Forms) -> Form:
    (r,) = attributes(node, "upscale_factor")
    return shuffled(first(forms, node), (r, r))


def _nearest(program: Program, node: fx.Node, forms: Forms) -> Form:
    form, (size, factors) = first(forms, node), attributes(node, "size", "scale_factor")
    if factors is None:
        lengths = [read_length(n, forms) for n in size]
        factors = [
            length and length.over(length_of(form, dim)) for dim, length in enumerate(lengths, 2)
        ]
    if not all(factor and float(factor).is_integer() for factor in factors):
        raise RefusedError(
            "size-mismatch",
            "the map is resized by a factor that is not a whole number at every size",
            "use a whole scale_factor",
        )
    return upsampled(form, (int(factors[0]), int(factors[1])))


def _conv_transpose(program: Program, node: fx.Node, forms: Forms) -> Form:
    conv = program.get(node)
    assert isinstance(conv, nn.ConvTranspose2d)
    if len(node.args) > 1:
        raise RefusedError("layout", "an output size is given at run time", "use output_padding")
    assert not isinstance(conv.padding, str)
    return transposed(
        first(forms, node),
        conv.weight.detach(),
        None if conv.bias is None else conv.bias.detach(),
        conv.groups,
        stride=_pair(conv.stride),
        padding=_pair(conv.padding),
        output_padding=_pair(conv.output_padding),
        dilation=_pair(conv.dilation),
    )


def _pair(numbers: tuple[int, ...]) -> tuple[int, int]:
    rows, columns = numbers
    return rows, columns


SPATIAL: dict[str, Rule] = {
    "conv2d": _convolution,
    "conv_transpose2d": _conv_transpose,
    "avg_pool": _avg_pool,
    "pad": _pad,
    "pad_value": _pad,
    "slice": _slice,
    "slice_scatter": _slice_scatter,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "interpolate_nearest": _nearest,
    "foreign:copy.default": _copy,
}
