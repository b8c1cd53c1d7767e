"""Canonical operations as steps of the algebra: one rule for each op that can be affine.

A rule gets the forms of its operands and returns the form of its result, or raises
`RefusedError`. Ops without a rule, and products of two data values, are boundaries. Here are the
rules of ops that treat each position alike; `spatial` has those that move over the map.
"""

from __future__ import annotations

from torch import Tensor, fx, nn

from fuseq import ops
from fuseq.affine.axis import IDENTITY
from fuseq.affine.form import LinForm
from fuseq.affine.operands import is_data, per_channel
from fuseq.affine.polyphase import Form, PolyphaseForm
from fuseq.affine.refusal import RefusedError
from fuseq.affine.spatial import SPATIAL, Forms, Rule, copy_into, first, is_tokens
from fuseq.program import Program

WEIGHTED = ("conv2d", "conv_transpose2d", "linear")
"""Ops that hold a weight, one of which replaces each region."""


def boundary(program: Program, node: fx.Node) -> RefusedError | None:
    """Why a node ends every region, or None if the algebra has a rule for it."""
    name = ops.name_of(program, node)
    if name not in RULES:
        return RefusedError("nonlinear", f"{name} is not an affine operation on maps")
    rank = len(node.meta.get("shape", ()))
    if rank < 2 or (rank != 4 and name in _MAPS):
        return RefusedError("layout", f"the result of {name} is not a map of rank 4")
    if name in ("mul", "div"):
        data = [a for a in node.args if is_data(a)]
        if len(data) > 1 or (name == "div" and not is_data(node.args[0])):
            return RefusedError("nonlinear", f"{name} of two values that depend on the input")
    is_norm = name in ("batch_norm", "batch_norm1d")
    if is_norm and getattr(program.get(node), "running_mean", None) is None:
        return RefusedError("nonlinear", "a batch norm without running statistics")
    return None


def operands(node: fx.Node) -> list[fx.Node]:
    """Data operands whose values a node reads, not just their size."""
    if node.target is copy_into:
        return []
    return [n for n in node.all_input_nodes if is_data(n)]


def form_of(program: Program, node: fx.Node, forms: Forms) -> Form:
    """Form of a node from the forms of its operands.

    Args:
        program: that holds the node.
        node: for which `boundary` is None.
        forms: of each node in `operands(node)`.

    Raises:
        RefusedError: border-bias, pad-mode, ceil-mode, count-include-pad, stride-mismatch,
            size-mismatch, layout.
    """
    name = ops.name_of(program, node)
    if name in _MAPS and any(is_tokens(forms[n]) for n in operands(node) if n in forms):
        raise RefusedError("layout", f"{name} on a value whose last dimension is its channels")
    return RULES[name](program, node, forms)


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A batch norm in eval as `scale * x + shift`: float64 `(channels,)` each."""
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale, shift


def _batch_norm(program: Program, node: fx.Node, forms: Forms) -> Form:
    form = first(forms, node)
    if is_tokens(form) and len(program.shape(node)) != 2:
        raise RefusedError(
            "layout", "a batch norm over dim 1 of values whose last dimension is their channels"
        )
    scale, shift = scale_and_shift(program.get(node))
    return form.scaled(scale).shifted(shift)


def _linear(program: Program, node: fx.Node, forms: Forms) -> Form:
    layer = program.get(node)
    assert isinstance(layer, nn.Linear)
    form = first(forms, node)
    if not is_tokens(form):
        raise RefusedError("layout", "a linear layer on the columns of a map")
    weight = layer.weight.detach()[:, :, None, None]
    bias = None if layer.bias is None else layer.bias.detach()
    return form.convolved(weight, bias, 1, (IDENTITY, IDENTITY))


def _add(program: Program, node: fx.Node, forms: Forms) -> Form:
    a, b = node.args
    return _sum(program, node, forms, a, b, 1.0)


def _sub(program: Program, node: fx.Node, forms: Forms) -> Form:
    a, b = node.args
    return _sum(program, node, forms, a, b, -1.0)


def _sum(
    program: Program,
    node: fx.Node,
    forms: Forms,
    a: fx.node.Argument,
    b: fx.node.Argument,
    sign: float,
) -> Form:
    """`a + sign * b`, where at most one operand is a constant."""
    if not is_data(a):
        form = _form(forms, b)
        return form.scaled(sign).shifted(_constant(program, node, form, a))
    form = _form(forms, a)
    if not is_data(b):
        return form.shifted(sign * _constant(program, node, form, b))
    other = _form(forms, b).scaled(sign) if sign != 1 else _form(forms, b)
    return _plus(form, other)


def _plus(a: Form, b: Form) -> Form:
    if isinstance(a, LinForm) and isinstance(b, LinForm):
        return a.plus(b)
    fine, other = (a, b) if isinstance(a, PolyphaseForm) else (b, a)
    assert isinstance(fine, PolyphaseForm)
    return fine.plus(other)


def _mul(program: Program, node: fx.Node, forms: Forms) -> Form:
    a, b = node.args
    data, constant = (a, b) if is_data(a) else (b, a)
    form = _form(forms, data)
    return form.scaled(_constant(program, node, form, constant))


def _div(program: Program, node: fx.Node, forms: Forms) -> Form:
    form = first(forms, node)
    return form.scaled(1 / _constant(program, node, form, node.args[1]))


def _concat(program: Program, node: fx.Node, forms: Forms) -> Form:
    parts = node.args[0]
    assert isinstance(parts, list | tuple)
    if not all(is_data(part) for part in parts):
        raise RefusedError("layout", "a constant is concatenated", "pad the channels instead")
    all_forms = [_form(forms, part) for part in parts]
    rank, dim = len(program.shape(node)), node.kwargs["dim"]
    assert isinstance(dim, int)
    if dim % rank != (rank - 1 if is_tokens(all_forms[0]) else 1):
        raise RefusedError("layout", f"concatenation along dim {dim}")
    linear = [form for form in all_forms if isinstance(form, LinForm)]
    if len(linear) == len(all_forms):
        return LinForm.concatenated(linear)
    return PolyphaseForm.concatenated(all_forms)


RULES: dict[str, Rule] = {
    **SPATIAL,
    "batch_norm": _batch_norm,
    "batch_norm1d": _batch_norm,
    "linear": _linear,
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "concat": _concat,
}

_MAPS = (SPATIAL.keys() | {"batch_norm"}) - {"slice"}
"""Ops of maps of rank 4."""


def _form(forms: Forms, value: fx.node.Argument) -> Form:
    assert isinstance(value, fx.Node)
    return forms[value]


def _constant(program: Program, node: fx.Node, form: Form, value: fx.node.Argument) -> Tensor:
    rank, dim = len(program.shape(node)), -1 if is_tokens(form) else 1
    return per_channel(program, value, form.channels, rank=rank, dim=dim)
