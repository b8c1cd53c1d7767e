"""`QuantizationTable`: every grid and every frozen integer of a program, in one place.

The simulator, the emitters and the encodings files read this table; nobody recomputes a scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from fuseq.quant.grid import Grid
from fuseq.quant.profile import Profile
from fuseq.quant.structure import integer_bounds


@dataclass(frozen=True)
class QuantizationTable:
    """Quantization parameters of one program.

    Attributes:
        profile: the target's rules it was solved for.
        grids: grid of each quantized value by node name; of each weight and bias by
            `<module path>.weight` and `.bias`; of each constant operand by node name, or by
            `<node name>.operand` where the operand is a number.
        integers: frozen int8 weights, int32 biases and constants, by the same names.
        absorbed: producer node name -> name of the activation it computes on its accumulator. The
            producer's own value has no grid. Where a requantize follows that activation, both the
            layer and the activation map to the requantize.
        integer: names of nodes that compute on integers. Any other node runs in float on the reals
            of its operands, and its value is then quantized if it has a grid.
    """

    profile: Profile
    grids: Mapping[str, Grid]
    integers: Mapping[str, Tensor]
    absorbed: Mapping[str, str]
    integer: frozenset[str]

    def cut_to(self, node: fx.Node) -> tuple[int, int] | None:
        """Integers at which an activation cuts that a node computes on its accumulator.

        Args:
            node: of the program.

        Returns:
            None where nothing is cut, or the grid's ends do it: not on one with zero point 0, nor
            on that of a concat, which holds the values of other operands too.
        """
        if node.name not in self.absorbed:
            return None
        (activation,) = node.users
        value = self.absorbed[node.name]
        grid = self.grids[value]
        if activation.name == value and grid.dtype not in self.profile.symmetric:
            return None
        ends = integer_bounds(activation, grid)
        return None if ends == (grid.qmin, grid.qmax) else ends
