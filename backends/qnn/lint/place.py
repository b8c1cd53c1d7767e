"""What a rule looks at: one node, its op, and the grids around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import fx

from fuseq.program import Program
from fuseq.quant.grid import Grid
from fuseq.quant.structure import operands
from fuseq.quant.table import QuantizationTable

Finding: TypeAlias = tuple[str, str]
"""Why, and what would make it right."""


@dataclass(frozen=True)
class Place:
    """A node of a program.

    Attributes:
        program: float or quantized.
        node: in its graph.
        op: its name, as `fuseq.ops.name_of` gives it.
    """

    program: Program
    node: fx.Node
    op: str

    @property
    def table(self) -> QuantizationTable | None:
        """Grids of the program; None while it is float."""
        return self.program.quantization

    @property
    def output(self) -> Grid | None:
        """Grid of the result; of the activation on its sums, if there is one."""
        if self.table is None:
            return None
        name = self.table.absorbed.get(self.node.name, self.node.name)
        return self.table.grids.get(name)

    @property
    def inputs(self) -> list[Grid]:
        """Grids of the operands that have one."""
        table = self.table
        if table is None:
            return []
        found = [table.grids.get(operand.name) for operand in operands(self.node)]
        return [grid for grid in found if grid is not None]

    def parameter(self, name: str) -> Grid | None:
        """Grid of a parameter of a layer."""
        return self.table.grids.get(f"{self.node.target}.{name}") if self.table else None

    @property
    def foreign(self) -> str:
        """Name of an op outside the vocabulary; else the empty string."""
        return self.op.removeprefix("foreign:").lower() if self.op.startswith("foreign:") else ""


Rule: TypeAlias = Callable[[Place], Finding | None]


def ends(grid: Grid) -> tuple[float, float]:
    """Smallest and largest real of a grid."""
    low, high = grid.dequantize(torch.tensor([grid.qmin, grid.qmax])).tolist()
    return low, high
