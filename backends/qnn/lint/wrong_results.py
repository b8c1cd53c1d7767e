"""Patterns that HTP's compiler takes and its graph computes wrongly.

Measured on the emulator (QAIRT 2.51); whether each chip does the same is not known.
"""

from __future__ import annotations

from typing import Any

from fuseq.backends.qnn.lint.place import Finding, Place, Rule, ends
from fuseq.quant.structure import bounds, holds_zero


def _clip_past_its_grid(place: Place) -> Finding | None:
    """A clip whose grid touches one of its bounds is dropped: the grid must end at both."""
    if place.op not in ("relu", "clamp") or place.output is None:
        return None
    absorbed = place.table is not None and place.node.name in place.table.absorbed
    if absorbed and holds_zero(place.node):  # `ignored_grid` ends there
        return None
    low, high = ends(place.output)
    first, last = bounds(place.node)
    if first <= low and high <= last:
        return None
    reason = (
        f"a grid from {low:.4g} to {high:.4g} behind a {place.op} to [{first:g}, {last:g}]: "
        "HTP may drop the clip, and values leave its interval"
    )
    return reason, "an interval that holds zero; calibrate with data that reaches both bounds"


def _signed_softmax(place: Place) -> Finding | None:
    grid = place.output if place.op == "softmax" else None
    if grid is None or grid.qmin == 0 or int(grid.zero_point) == grid.qmin:
        return None
    return f"a softmax on {grid}: HTP takes the zero point for {grid.qmin}", "uint8 activations"


def _free_grid_of_16_bits(place: Place) -> Finding | None:
    fixed = {"sigmoid": (2**-16, 0), "hardsigmoid": (2**-16, 0), "tanh": (2**-15, 2**15)}
    grid = place.output
    if place.op not in fixed or grid is None or grid.dtype != "uint16":
        return None
    scale, zero_point = fixed[place.op]
    if (float(grid.scale), int(grid.zero_point)) == (scale, zero_point):
        return None
    reason = f"a {place.op} on {grid}, where HTP computes on scale {scale:g}, zero {zero_point}"
    return reason, "quantize for this target: its profile fixes that grid"


def _pad_to_another_grid(place: Place) -> Finding | None:
    if place.op not in ("pad", "pad_value") or place.output is None or not place.inputs:
        return None
    if place.inputs[0] == place.output:
        return None
    return "a pad whose result has another grid than its input", "quantize for this target"


def _grouped_transposed(place: Place) -> Finding | None:
    weight = place.parameter("weight") if place.op == "conv_transpose2d" else None
    layer: Any = place.program.get(place.node) if weight is not None else None
    if weight is None or layer.groups == 1 or len(set(weight.scale.reshape(-1).tolist())) == 1:
        return None
    reason = "a transposed convolution with groups and a weight scale for each channel"
    return reason, "quantize for this target: such a weight gets one scale"


def _scales_along_the_sum(place: Place) -> Finding | None:
    weight = place.parameter("weight") if place.op == "linear" else None
    if weight is None or weight.axis in (0, None):
        return None
    return "weight scales along the dimension that is summed", "scales along output channels"


def _logarithm_and_running_sum(place: Place) -> Finding | None:
    if place.foreign not in ("log", "cumsum"):
        return None
    return f"{place.foreign}, which HTP computes wrongly in integers", "leave it to the application"


def _average_over_the_edge(place: Place) -> Finding | None:
    """HTP divides a window that hangs over the edge by another count: off by 25 steps on noise."""
    k: dict[str, Any] = dict(place.node.kwargs)
    if place.op != "avg_pool" or not (k["ceil_mode"] or k["divisor_override"] is not None):
        return None
    return (
        "an average pool with windows over the edge, which HTP divides otherwise",
        "ceil_mode=False",
    )


RULES: dict[str, Rule] = {
    "QNN101": _clip_past_its_grid,
    "QNN102": _signed_softmax,
    "QNN103": _free_grid_of_16_bits,
    "QNN104": _pad_to_another_grid,
    "QNN105": _grouped_transposed,
    "QNN106": _scales_along_the_sum,
    "QNN107": _logarithm_and_running_sum,
    "QNN108": _average_over_the_edge,
}
