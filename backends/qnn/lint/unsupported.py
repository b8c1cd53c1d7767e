"""What HTP's compiler refuses, or takes in some dtypes only; and what our files cannot say."""

from __future__ import annotations

from fuseq.backends.qnn.lint.place import Finding, Place, Rule

_LAYERS = {"conv2d": 0, "conv_transpose2d": 1, "linear": 0}
"""Layer -> dimension of its weight that has the scales."""

_REFUSED = frozenset("mish celu softsign erf einsum".split())

_NOT_IN = {
    "int8": frozenset("leaky_relu neg hardsigmoid log_softmax instance_norm".split()),
    "uint16": frozenset("batch_norm layer_norm".split()),
}
"""Dtype -> ops that HTP does not have in it, or not as ONNX states them."""


def _open_size(place: Place) -> Finding | None:
    if place.op != "shape":
        return None
    return "a size that is computed at run time: HTP graphs have one size", "lower the module"


def _dtype_of_interface(place: Place) -> Finding | None:
    leaves = any(user.op == "output" for user in place.node.users)
    if place.op != "input" and not leaves:
        return None
    dtype = str(place.node.meta["dtype"]).removeprefix("torch.")
    if dtype == "float32":
        return None
    side = "an input" if place.op == "input" else "an output"
    return f"{side} of {dtype}: only float32 ones have grids", "leave it to the application"


def _no_op_of_htp(place: Place) -> Finding | None:
    if place.foreign in _REFUSED or place.op == "group_norm":
        return f"HTP has no {place.foreign or place.op}", "another activation or norm"
    if place.foreign:
        return f"{place.foreign} is no op of ours", "an op of the table in docs/qnn.md"
    return None


def _sixteen_signed_bits(place: Place) -> Finding | None:
    signed = [grid for grid in (place.output, *place.inputs) if grid and grid.dtype == "int16"]
    if not signed:
        return None
    reason = "values of int16, in which HTP has no pixel shuffle, resize or depthwise convolution"
    return reason, "activation=uint16"


def _not_in_this_dtype(place: Place) -> Finding | None:
    for grid in (place.output, *place.inputs):
        if grid and place.op in _NOT_IN.get(grid.dtype, ()):
            return f"HTP has no {place.op} in {grid.dtype}", "activation=uint8"
    return None


def _prelu_of_16_bits(place: Place) -> Finding | None:
    """Where no layer computes it."""
    if place.op != "prelu" or place.table is None or place.output is None:
        return None
    if place.output.dtype != "uint16" or place.node.name in place.table.absorbed.values():
        return None
    return "a PReLU of 16 bits that no convolution computes", "activation=uint8; or a leaky ReLU"


def _mixed_dtypes(place: Place) -> Finding | None:
    if place.op not in {*_LAYERS, "add", "sub", "mul", "div", "matmul", "concat"}:
        return None
    found = {grid.dtype for grid in (place.output, *place.inputs) if grid}
    if len(found) < 2:
        return None
    reason = f"{' and '.join(sorted(found))} around one {place.op}"
    return reason, "all of them wide, or none: name the nodes in wide, or activation=uint16"


def _dtype_of_weight(place: Place) -> Finding | None:
    weight = place.parameter("weight") if place.op in _LAYERS else None
    if weight is None or weight.dtype == "int8":
        return None
    return f"a weight of {weight.dtype}", "int8, which every dtype of activations goes with"


def _asymmetric_channels(place: Place) -> Finding | None:
    weight = place.parameter("weight") if place.op in _LAYERS else None
    if weight is None or weight.axis is None or not bool(weight.zero_point.any()):
        return None
    return "a weight with a zero point for each channel", "symmetric weights"


def _axis_of_scales(place: Place) -> Finding | None:
    weight = place.parameter("weight") if place.op in _LAYERS else None
    if weight is None or weight.axis in (_LAYERS[place.op], None):
        return None
    return f"weight scales along dimension {weight.axis}", f"along dimension {_LAYERS[place.op]}"


def _same_value_twice(place: Place) -> Finding | None:
    outputs = place.program.outputs()
    if place.op == "input" and place.node in outputs:
        return "an input that is an output, for which HTP has no op", "leave it to the application"
    if outputs.count(place.node) < 2:
        return None
    return "a value that is two outputs, for which HTP has no op", "return it once"


RULES: dict[str, Rule] = {
    "QNN301": _open_size,
    "QNN302": _dtype_of_interface,
    "QNN303": _no_op_of_htp,
    "QNN304": _sixteen_signed_bits,
    "QNN305": _not_in_this_dtype,
    "QNN306": _prelu_of_16_bits,
    "QNN307": _mixed_dtypes,
    "QNN308": _dtype_of_weight,
    "QNN309": _asymmetric_channels,
    "QNN310": _axis_of_scales,
    "QNN311": _same_value_twice,
}
