"""Heights and widths as functions of the root's, so that sizes read at run time can be compared.

A size of a value is `N(H) = m * (floor((H + a) / s) + 1) + c` for stride s and extent a of its
axis, m phases and a constant c. Two sizes differ by the same amount for every H if m and s are
equal and s divides the difference of the extents.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from fuseq import ops
from fuseq.affine.axis import Axis
from fuseq.affine.form import LinForm
from fuseq.affine.polyphase import Form


@dataclass(frozen=True)
class Length:
    """A size as a function of the root's.

    Attributes:
        axis: whose size it is a multiple of.
        phases: the multiple.
        constant: added to it.
    """

    axis: Axis
    phases: int = 1
    constant: int = 0

    def minus(self, other: Length) -> int | None:
        """Difference of two sizes, if it is the same for every root."""
        gap = self.axis.extent - other.axis.extent
        if (self.phases, self.axis.stride) != (other.phases, other.axis.stride):
            return None
        if gap % self.axis.stride:
            return None
        return self.phases * gap // self.axis.stride + self.constant - other.constant

    def over(self, other: Length) -> int | None:
        """Whole number that a size is times another, for every root."""
        factor = self.phases // other.phases
        return factor if factor and self.minus(other.times(factor)) == 0 else None

    def times(self, factor: int) -> Length:
        """A whole multiple."""
        return replace(self, phases=factor * self.phases, constant=factor * self.constant)


def length_of(form: Form, dim: int) -> Length:
    """Height (dim 2) or width (dim 3) of a form."""
    if isinstance(form, LinForm):
        return Length(form.axes[dim - 2])
    return Length(form.coarse.axes[dim - 2], form.phases[dim - 2], -form.cut[dim - 2])


def read_length(value: Any, forms: Mapping[fx.Node, Form]) -> Length | None:
    """A size computed at run time, if it is one of a value that has a form.

    Args:
        value: operand of a slice or a resize: a number or a node.
        forms: of the values of the region.
    """
    if not isinstance(value, fx.Node):
        return None
    if value.target is ops.sym_size:
        of, dim = value.args
        known = isinstance(of, fx.Node) and of in forms and isinstance(dim, int)
        return length_of(forms[of], dim) if known and dim in (2, 3) else None  # type: ignore[index,arg-type]
    if len(value.args) != 2:
        return None
    a, b = (n if isinstance(n, int) else read_length(n, forms) for n in value.args)
    match value.target, a, b:
        case operator.add, Length(), int():
            return replace(a, constant=a.constant + b)
        case operator.sub, Length(), int():
            return replace(a, constant=a.constant - b)
        case operator.mul, Length(), int():
            return a.times(b)
        case operator.mul, int(), Length():
            return b.times(a)
    return None
