"""Which part of a quantized program costs most: each is quantized alone, all others stay float.

Parts are the values that share one grid, and the weight and bias of each layer. For each of them
the float program runs with that part rounded to its grid, and

    noise = mean over outputs of  sum (y_rounded - y)^2 / sum y^2      over all batches

is what it costs at the outputs; SQNR is its inverse in dB. Errors of many small roundings are
nearly uncorrelated, so the noises of the parts add up to about that of the whole program, and the
share of one of them says what leaving it out could win. (Leaving one out of the quantized whole
would measure the same as a small difference of two large numbers.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, fx
from torch.func import functional_call

from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.quant.calibrate import batches_of
from fuseq.quant.table import QuantizationTable

Form: TypeAlias = Literal["float", "int16"]
"""What a part can have instead of 8 bits."""


@dataclass(frozen=True)
class Sensitivity:
    """What it costs to quantize one part of a program.

    Attributes:
        node: the layer, or the first node whose value has the grid.
        kind: "value" or "weights".
        members: names of all nodes that have the grid; the layer.
        noise: noise at the outputs over their power, when only this part is quantized.
        share: of the sum of the noises of all parts, in 0..1.
    """

    node: str
    kind: Literal["value", "weights"]
    members: tuple[str, ...]
    noise: float
    share: float

    @property
    def sqnr_db(self) -> float:
        """Signal over noise at the outputs, infinite without noise."""
        return -10 * math.log10(self.noise) if self.noise > 0 else math.inf


def sensitivities(
    program: Program, data: Iterable[Any], progress: Callable[[int], None] | None = None
) -> list[Sensitivity]:
    """Rank the parts of a quantized program by what each costs alone.

    Args:
        program: quantized; stays as it is.
        data: batches of inputs, seen once; one at a time is in memory, with all its values.
        progress: called with the number of batches seen so far.

    Returns:
        The parts, worst first; equals in graph order.

    Raises:
        FuseqError: FQ201 for a program that is not quantized, FQ006 for data that is empty or does
            not fit.
    """
    table = program.quantization
    if table is None:
        raise FuseqError("FQ201", "the program is not quantized", fix="run fuseq.quantize first")
    parts = [*_values(program, table), *_weights(program, table)]
    outputs = program.outputs()
    noise = torch.zeros(len(parts), len(outputs), dtype=torch.float64)
    power = torch.zeros(len(outputs), dtype=torch.float64)
    count = 0
    with torch.no_grad():
        for count, batch in enumerate(batches_of(program, data), start=1):
            exact = fx.Interpreter(program.module, garbage_collect_values=False)
            exact.run(*batch)
            power += torch.stack([_square(exact.env[y]) for y in outputs])
            for row, part in zip(noise, parts, strict=True):
                run = _PartRounded(program, table, part, exact.env)
                run.run(*batch)
                row += torch.stack([_square(run.env[y] - exact.env[y]) for y in outputs])
            if progress:
                progress(count)
    if not count:
        raise FuseqError(
            "FQ006", "the calibration set is empty", fix="give at least one batch of inputs"
        )
    ratios = (noise / power.clamp_min(torch.finfo(power.dtype).tiny)).mean(1)
    total = float(ratios.sum()) or 1.0
    found = [
        Sensitivity(
            part.nodes[0].name, part.kind, tuple(n.name for n in part.nodes), ratio, ratio / total
        )
        for part, ratio in zip(parts, ratios.tolist(), strict=True)
    ]
    return sorted(found, key=lambda part: -part.noise)


def opt_outs(
    program: Program, ranking: Iterable[Sensitivity], count: int, form: Form
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What to leave out of 8 bits so that the worst parts cost nothing, or a 256th of it.

    A layer's weights stay float with the layer. A value stays float if what computes it and what
    reads it does; on a grid of 16 bits both stay as they are, and weights have 8 bits always.

    Args:
        program: the quantized program that was ranked.
        ranking: of `sensitivities`.
        count: how many parts, the worst of those that `form` can better.
        form: float, or int16 for grids of 16 bits.

    Returns:
        Names of nodes for `keep` and for `wide` of the `quantize` pass.
    """
    table = program.quantization
    assert table is not None
    parts = [
        part for part in ranking if part.noise > 0 and (form == "float" or part.kind == "value")
    ]
    if form == "int16":
        return (), tuple(part.node for part in parts[:count])
    nodes = {node.name: node for node in program.graph.nodes}
    kept: dict[str, None] = {}
    for part in parts[:count]:
        around = dict.fromkeys(part.members)
        if part.kind == "value":
            around |= dict.fromkeys(a for a, b in table.absorbed.items() if b in part.members)
            around |= {user.name: None for name in part.members for user in nodes[name].users}
        kept |= {name: None for name in around if name in table.integer}
    return tuple(kept), ()


def _square(values: Tensor) -> Tensor:
    return values.double().square().sum()


@dataclass(frozen=True)
class _Part:
    kind: Literal["value", "weights"]
    nodes: tuple[fx.Node, ...]


def _values(program: Program, table: QuantizationTable) -> list[_Part]:
    """One part for each grid of values: the members of a group have the same object."""
    groups: dict[int, list[fx.Node]] = {}
    for node in program.graph.nodes:
        if node.name in table.grids and node.op != "get_attr":
            groups.setdefault(id(table.grids[node.name]), []).append(node)
    return [_Part("value", tuple(nodes)) for nodes in groups.values()]


def _weights(program: Program, table: QuantizationTable) -> list[_Part]:
    return [
        _Part("weights", (node,))
        for node in program.graph.nodes
        if node.op == "call_module" and f"{node.target}.weight" in table.integers
    ]


class _PartRounded(fx.Interpreter):
    """The float program with one part rounded; computes what depends on that part only."""

    def __init__(
        self,
        program: Program,
        table: QuantizationTable,
        part: _Part,
        exact: Mapping[fx.Node, Any],
    ) -> None:
        super().__init__(program.module, garbage_collect_values=False)
        self.extra_traceback = False
        self.program, self.table, self.part, self.exact = program, table, part, exact
        self.changed: set[fx.Node] = set()

    def run_node(self, node: fx.Node) -> Any:
        follows = any(operand in self.changed for operand in node.all_input_nodes)
        if node not in self.part.nodes:
            if not follows:
                return self.exact[node]
            self.changed.add(node)
            return super().run_node(node)
        self.changed.add(node)
        if self.part.kind == "weights":
            (source,) = node.all_input_nodes
            rounded = _parameters(self.table, str(node.target))
            return functional_call(self.program.get(node), rounded, self.env[source])
        grid = self.table.grids[node.name]
        return grid.dequantize(
            grid.quantize(super().run_node(node) if follows else self.exact[node])
        )


def _parameters(table: QuantizationTable, path: str) -> dict[str, Tensor]:
    names = {key: f"{path}.{key}" for key in ("weight", "bias")}
    return {
        key: table.grids[name].dequantize(table.integers[name])
        for key, name in names.items()
        if name in table.integers
    }
