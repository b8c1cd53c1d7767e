"""Patterns that HTP takes and computes in float inside its graph, without a word."""

from __future__ import annotations

from typing import Any

from fuseq.backends.qnn.lint.place import Finding, Place, Rule

_FLOAT_ON_HTP = frozenset("sum mean norm linalg_vector_norm selu threshold _threshold".split())
"""Ops outside the vocabulary that HTP computes in float whatever stands around them."""

_NO_OPS = frozenset({"input", "output", "constant", "shape", "requantize"})


def _resize_to_another_grid(place: Place) -> Finding | None:
    if place.op not in ("interpolate", "interpolate_nearest") or place.output is None:
        return None
    if place.inputs and place.inputs[0] == place.output:
        return None
    return "a resize whose result has another grid than its input", "quantize for this target"


def _weighted_norm(place: Place) -> Finding | None:
    layer: Any = place.program.get(place.node) if place.op == "instance_norm" else None
    if layer is None or layer.weight is None:
        return None
    reason = "an instance norm whose weight and bias are not integers"
    return reason, "run legalize first, which makes a convolution of them; the pipeline has it"


def _float_whatever_the_grids(place: Place) -> Finding | None:
    if place.foreign not in _FLOAT_ON_HTP:
        return None
    return f"{place.foreign}, which HTP computes in float", "x.mean((2, 3)), or another activation"


def _float_island(place: Place) -> Finding | None:
    if place.op in _NO_OPS or place.foreign or place.op == "group_norm":  # `unsupported`
        return None
    table = place.table
    if table is None:
        from fuseq.backends.qnn import QnnBackend

        profile = QnnBackend.profile
        if profile.computes(place.op) or place.op in profile.same_grid:
            return None
        return f"{place.op}, for which we have no integers", "an op of the table in docs/qnn.md"
    if place.node.name in table.integer:
        return None
    reason = f"{place.op} runs in float, and a graph for HTP has no float part"
    return reason, "without keep for this node; or an op of the table in docs/qnn.md"


RULES: dict[str, Rule] = {
    "QNN201": _resize_to_another_grid,
    "QNN202": _weighted_norm,
    "QNN203": _float_whatever_the_grids,
    "QNN204": _float_island,
}
