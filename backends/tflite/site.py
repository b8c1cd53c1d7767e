"""Where an op is written: its node, and the tensors that it reads and writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from torch import fx

from fuseq.backends.tflite.file import File
from fuseq.program import Program

NO_ACTIVATION: int = schema.ActivationFunctionType.NONE


@dataclass(frozen=True)
class Site:
    """Where an op is written.

    Attributes:
        file: to write to.
        program: the node's.
        node: the op.
        inputs: tensors of its operands, as stored.
        output: tensor of its result, as stored.
        in_block_order: whether the channels on the deep side of a pixel shuffle are in block order.
        fused: activation of the schema that the op computes, if it absorbs one.
    """

    file: File
    program: Program
    node: fx.Node
    inputs: Sequence[int]
    output: int
    in_block_order: bool = False
    fused: int = NO_ACTIVATION

    def shape_of_operand(self) -> tuple[int, ...]:
        """Shape of the first operand in the program."""
        return self.program.shape(self.node.all_input_nodes[0])

    def op(self, code: str, options: str = "", **fields: Any) -> None:
        """Add the one operator of this op."""
        self.file.op(code, self.inputs, self.output, options, **fields)

    def step(
        self,
        code: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        options: str = "",
        **fields: Any,
    ) -> int:
        """Add an operator whose result is an inner float tensor of a shape, as stored."""
        inner = self.file.like(self.output, f"{self.node.name}.{code.lower()}", shape)
        return self.file.op(code, inputs, inner, options, **fields)

    def number(self, value: float) -> int:
        """A float constant."""
        name = f"{self.node.name}.constant"
        return self.file.constant(name, np.full((1,), value, np.float32))


Form: TypeAlias = Callable[[Site], None]
"""Adds the operators of an op."""
