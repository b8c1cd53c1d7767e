"""`QuantizationTable`: every grid and every frozen integer of a program, in one place.

The simulator, the emitters and the encodings files read this table; nobody recomputes a scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fuseq.quant.grid import Grid
from fuseq.quant.profile import Profile


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
