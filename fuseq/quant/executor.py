"""The integer executor: runs a quantized program in a runtime's own integers, value by value.

It is what a quantized program computes when it is called, and the oracle every emitter is held to.
Values on a grid travel as integers; a node without a grid runs in float on the reals of its
operands; an op without an integer kernel computes in float between two grids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fuseq import ops
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.quant.arithmetic import ARITHMETICS, Arithmetic
from fuseq.quant.arithmetic.base import Function
from fuseq.quant.grid import Grid
from fuseq.quant.kernels import KERNELS
from fuseq.quant.structure import flat_arguments
from fuseq.quant.table import QuantizationTable

if TYPE_CHECKING:
    from fuseq.qat.model import QatModel


@dataclass(frozen=True)
class Quantized:
    """Integers on a grid.

    Attributes:
        q: int32; in training float32, centered: `q - zero_point` (see `fuseq.qat.training`).
        grid: what they mean.
    """

    q: Tensor
    grid: Grid


@dataclass(frozen=True)
class Execution:
    """What one run of the executor gave.

    Attributes:
        result: outputs as reals, nested as the model nests them.
        integers: int32 values by node name, of every value on a grid.
        reals: float values by node name, of every value without one.
        rounded: names of values on a grid that were computed in float and depend on how a machine
            adds and rounds floats; all others' integers do not.
    """

    result: Any
    integers: Mapping[str, Tensor]
    reals: Mapping[str, Tensor]
    rounded: frozenset[str]

    def real(self, program: Program, name: str) -> Tensor:
        """Reals of a value that was kept.

        Args:
            program: that was run.
            name: of the node.
        """
        if name in self.reals:
            return self.reals[name]
        assert program.quantization is not None
        return program.quantization.grids[name].dequantize(self.integers[name])


def execute(
    program: Program | QatModel,
    inputs: tuple[Tensor, ...],
    arithmetic: str | None = None,
    *,
    given: Mapping[str, Tensor] | None = None,
    intermediates: bool = True,
) -> Execution:
    """Run a quantized program in integers.

    Args:
        program: with a quantization table; or a model prepared for training, which is finalized.
        inputs: float32 tensors; inputs on a grid are quantized first.
        arithmetic: key of `ARITHMETICS`; the profile's own by default.
        given: integers another runtime computed, by node name: each op then starts from these
            instead of from our own result (which is still what `integers` holds), so that a
            difference is seen only where it arises.
        intermediates: keep every value; otherwise only outputs are kept.

    Returns:
        Outputs and values. The same inputs give the same integers on every machine and thread
        count: sums are exact.

    Raises:
        FuseqError: FQ201 for a program without a table, FQ007 for an unknown arithmetic.
    """
    if not isinstance(program, Program):
        from fuseq.qat.model import finalize

        program = finalize(program)
    table = program.quantization
    if table is None:
        raise FuseqError("FQ201", "the program is not quantized", fix="run fuseq.quantize first")
    name = arithmetic or table.profile.arithmetic
    if name not in ARITHMETICS:
        known = ", ".join(sorted(ARITHMETICS))
        raise FuseqError("FQ007", f"unknown arithmetic '{name}'", fix=f"one of {known}")
    runner = IntegerInterpreter(program, table, ARITHMETICS[name], given, intermediates)
    with torch.no_grad():
        result = runner.run(*inputs)
    return Execution(result, runner.integers, runner.reals, frozenset(runner.rounded))


class IntegerInterpreter(fx.Interpreter):
    """Computes nodes in integers: values on a grid are `Quantized`, all others tensors.

    What the integers are is the arithmetic's business. Training has another one, and overrides the
    methods that look inside: `move`, `frozen`, `parameters`.

    Attributes:
        integers: values on a grid met so far, by node name, if they are kept.
        reals: the other tensors, likewise.
        rounded: names of values on a grid that were computed in float.
    """

    def __init__(
        self,
        program: Program,
        table: QuantizationTable,
        arithmetic: Arithmetic,
        given: Mapping[str, Tensor] | None = None,
        keep: bool = False,
    ) -> None:
        """Take a program to run node by node.

        Args:
            program: the table's.
            table: its grids and integers.
            arithmetic: what the integers of each op are.
            given: as `execute` takes it.
            keep: keep every value.
        """
        super().__init__(program.module)
        self.extra_traceback = False
        self.program, self.table, self.arithmetic, self.keep = program, table, arithmetic, keep
        self.given = given or {}
        self.integers: dict[str, Tensor] = {}
        self.reals: dict[str, Tensor] = {}
        self.rounded: set[str] = set()

    def run_node(self, node: fx.Node) -> Any:
        """Value of a node from those of its operands in `env`."""
        value = self._value(node)
        if self.keep and isinstance(value, Quantized) and node.name in self.table.grids:
            self.integers[node.name] = value.q
        elif self.keep and isinstance(value, Tensor):
            self.reals[node.name] = value
        if node.name in self.given and isinstance(value, Quantized):
            return Quantized(self.given[node.name], value.grid)
        return value

    def _value(self, node: fx.Node) -> Any:
        name = ops.name_of(self.program, node)
        if name == "output":
            return fx.node.map_arg(node.args[0], lambda n: self.real(self.env[n]))
        if name == "constant" and node.name in self.table.integers:
            return self.frozen(node.name, lambda: self.program.constant(node))
        grid = self.table.grids.get(self.table.absorbed.get(node.name, node.name))
        if grid is None:
            return self.in_float(node)
        if name == "input":
            return Quantized(self.arithmetic.quantize(self.in_float(node), grid), grid)
        source = self.env[node.all_input_nodes[0]]
        if name == "requantize" and isinstance(source, Quantized):
            return _moved(self.arithmetic, source, grid)
        if node.name not in self.table.integer:
            return self.rounded_once(node, grid)
        if node.all_input_nodes[0].name in self.table.absorbed:
            return source
        if name in KERNELS:
            q = KERNELS[name](self, node, grid)
            ends = self.cut_to(node)
            return Quantized(q if ends is None else q.clamp(*ends), grid)
        if name in self.table.profile.same_grid:
            return Quantized(self.move(node, source), grid)
        return self.rounded_once(node, grid)

    def rounded_once(self, node: fx.Node, grid: Grid) -> Quantized:
        """A value computed in float, on the reals of its operands, and quantized at the end."""
        self.rounded.add(node.name)
        return Quantized(self.arithmetic.quantize(self.in_float(node), grid), grid)

    def in_float(self, node: fx.Node, first: Tensor | None = None) -> Any:
        """Run a node on the reals of its operands, or with another tensor for the first of them."""
        env, self.env = self.env, {n: self.real(self.env[n]) for n in node.all_input_nodes}
        if first is not None:
            self.env[node.all_input_nodes[0]] = first
        try:
            return super().run_node(node)
        finally:
            self.env = env

    def real(self, value: Any) -> Any:
        """Reals of a value."""
        if isinstance(value, Quantized):
            return self.arithmetic.dequantize(value.q, value.grid).float()
        return value

    def move(self, node: fx.Node, source: Quantized) -> Tensor:
        """Run an op that only selects values on the integers themselves.

        float32 holds 8 and 16 bit integers exactly; a fill of real zero is the zero point.
        """
        zero = int(source.grid.zero_point)
        moved: Tensor = self.in_float(node, (source.q - zero).float())
        return moved.to(torch.int32) + zero

    def frozen(self, name: str, real: Callable[[], Tensor]) -> Quantized:
        """A constant on its grid; `real` gives its reals."""
        return Quantized(self.table.integers[name], self.table.grids[name])

    # --- what kernels ask ---

    def arithmetic_of(self, node: fx.Node, grid: Grid) -> Arithmetic:
        """The arithmetic of a node whose result is on a grid; `rounded` notes if it is inexact."""
        name = ops.name_of(self.program, node)
        chosen = self.arithmetic.between(name, grid, *(x.grid for x in self.operands(node)))
        if name in chosen.inexact:
            self.rounded.add(self.table.absorbed.get(node.name, node.name))
        activation = self.on_accumulator(node)
        return chosen if activation is None else chosen.activated(activation)

    def on_accumulator(self, node: fx.Node) -> Function | None:
        """The activation that a layer computes on its sums; None where its grid's ends do it."""
        if node.name not in self.table.absorbed:
            return None
        (activation,) = node.users
        name = ops.name_of(self.program, activation)
        if name in ("relu", "clamp", "requantize"):
            return None
        if name == "prelu":
            layer: Any = self.program.get(activation)
            slopes = self.arithmetic.slopes(layer.weight)
            return lambda real: F.prelu(real, slopes.to(real.dtype))
        function: Any = activation.target
        return lambda real: function(real, **activation.kwargs)

    def cut_to(self, node: fx.Node) -> tuple[int, int] | None:
        """Integers at which an absorbed relu or clamp cuts; None where the grid's ends do it."""
        return self.table.cut_to(node)

    def _operand(self, node: fx.Node, arg: Any) -> Any:
        if isinstance(arg, fx.Node):
            return self.env[arg]
        key = f"{node.name}.operand"
        if key not in self.table.integers:
            return arg
        return self.frozen(key, lambda: torch.tensor(arg))

    def operands(self, node: fx.Node) -> list[Quantized]:
        """Operands of a node, all of them on grids."""
        return [self._operand(node, arg) for arg in flat_arguments(node)]

    def parameters(self, node: fx.Node) -> tuple[Tensor, Grid, Tensor | None]:
        """Frozen weight, its grid, and the frozen bias of a layer."""
        path, table = str(node.target), self.table
        weight = f"{path}.weight"
        return table.integers[weight], table.grids[weight], table.integers.get(f"{path}.bias")


def _moved(arithmetic: Arithmetic, source: Quantized, grid: Grid) -> Quantized:
    if source.grid == grid:
        return source
    return Quantized(arithmetic.requantize(source.q, source.grid, grid), grid)
