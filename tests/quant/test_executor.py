"""The executor against an independent implementation: int64 sums and exact fractions."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fuseq
from fuseq import ops, plugins, rewrite
from fuseq.program import Program
from fuseq.quant.executor import Execution, execute
from fuseq.quant.grid import Grid

Integers = npt.NDArray[np.int64]
Fractions: TypeAlias = Any
"""An object array of `Fraction`, which numpy's types know nothing of."""


class Net(nn.Module):
    """Strided, grouped and dilated convolutions, a residual, a gate, a concat and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False)
        self.grouped = nn.Conv2d(4, 6, 1, groups=2)
        self.mix = nn.Conv2d(10, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu6(self.stem(x))
        z = y + self.depthwise(y)
        z = torch.cat([self.grouped(z), y], 1)
        z = torch.relu(self.mix(z))
        z = F.max_pool2d(z * y, 3, 2, 1)
        return self.head(z.mean((2, 3))), F.pixel_shuffle(z, 2)


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(1)
    data = [torch.rand(4, 3, 9, 11) - 0.3 for _ in range(2)]
    return fuseq.quantize(fuseq.capture(Net(), torch.rand(1, 3, 9, 11)), calibration=data)


def mixed(options: dict[str, Any]) -> Program:
    torch.manual_seed(1)
    data = [torch.rand(4, 3, 9, 11) - 0.3 for _ in range(2)]
    profile = plugins.load("backends", "onnx").profile
    program = fuseq.capture(Net(), torch.rand(1, 3, 9, 11))
    program = rewrite.apply(plugins.load("passes", "legalize")(profile=profile), program)
    quantize = plugins.load("passes", "quantize")
    return rewrite.apply(quantize(profile=profile, calibration=data, **options), program)


def inputs(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 9, 11, generator=torch.Generator().manual_seed(2)) * 1.5 - 0.5


def to_grid(real: Fraction, grid: Grid) -> int:
    """Nearest integer, halves to even, as `round` of a fraction is."""
    q = round(real / Fraction(float(grid.scale))) + int(grid.zero_point)
    return min(max(q, grid.qmin), grid.qmax)


class Slow:
    """Real arithmetic without rounding, one value at a time."""

    def __init__(self, program: Program) -> None:
        assert program.quantization is not None
        self.program, self.table = program, program.quantization
        self.values: dict[str, Integers] = {}

    def run(self, x: Tensor) -> dict[str, Integers]:
        for node in self.program.graph.nodes:
            name = ops.name_of(self.program, node)
            absorbed = self.table.absorbed.get(node.name)
            grid = self.table.grids.get(absorbed or node.name)
            if name == "input":
                assert grid is not None
                exact = [to_grid(Fraction(float(v)), grid) for v in x.reshape(-1)]
                self.values[node.name] = np.array(exact).reshape(x.shape)
            elif node.name in self.table.absorbed.values():
                self.values[node.name] = self.values[node.all_input_nodes[0].name]
            elif grid is not None:
                reals = getattr(self, name)(node)
                flat = [to_grid(real, grid) for real in reals.reshape(-1)]
                self.values[node.name] = np.array(flat).reshape(reals.shape)
        return self.values

    def reals(self, node: fx.Node) -> Fractions:
        grid = self.table.grids[node.name]
        scale, zero = Fraction(float(grid.scale)), int(grid.zero_point)
        return np.vectorize(lambda q: scale * (int(q) - zero), otypes=[object])(
            self.values[node.name]
        )

    def operands(self, node: fx.Node) -> Iterator[Fractions]:
        yield from (self.reals(operand) for operand in node.all_input_nodes)

    def conv2d(self, node: fx.Node) -> Fractions:
        conv = self.program.get(node)
        assert isinstance(conv, nn.Conv2d)
        source = node.all_input_nodes[0]
        grid = self.table.grids[source.name]
        (top, left), (down, right) = tuple(map(int, conv.padding)), conv.stride
        x = self.values[source.name] - int(grid.zero_point)
        x = np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)))
        weight = self.table.integers[f"{node.target}.weight"].numpy().astype(np.int64)
        out, per_group, high, wide = weight.shape
        n, _, h, w = (x.shape[0], out, *self.program.shape(node)[2:])
        sums = np.zeros((n, out, h, w), dtype=np.int64)
        for o in range(out):
            first = o // (out // conv.groups) * per_group
            for c, i, j in np.ndindex(per_group, high, wide):
                rows = slice(i * conv.dilation[0], i * conv.dilation[0] + down * (h - 1) + 1, down)
                columns = slice(
                    j * conv.dilation[1], j * conv.dilation[1] + right * (w - 1) + 1, right
                )
                sums[:, o] += weight[o, c, i, j] * x[:, first + c, rows, columns]
        return self.rescaled(node, sums, (1, out, 1, 1))

    def linear(self, node: fx.Node) -> Fractions:
        source = node.all_input_nodes[0]
        x = self.values[source.name] - int(self.table.grids[source.name].zero_point)
        weight = self.table.integers[f"{node.target}.weight"].numpy().astype(np.int64)
        return self.rescaled(node, x @ weight.T, (1, weight.shape[0]))

    def rescaled(self, node: fx.Node, sums: Integers, shape: tuple[int, ...]) -> Fractions:
        bias = self.table.integers.get(f"{node.target}.bias")
        if bias is not None:
            sums = sums + bias.numpy().astype(np.int64).reshape(shape)
        x = Fraction(float(self.table.grids[node.all_input_nodes[0].name].scale))
        scales = self.table.grids[f"{node.target}.weight"].scale.tolist()
        weight = np.array([Fraction(s) for s in scales], dtype=object).reshape(shape)
        return sums.astype(object) * weight * x

    def add(self, node: fx.Node) -> Fractions:
        a, b = self.operands(node)
        return a + b

    def mul(self, node: fx.Node) -> Fractions:
        a, b = self.operands(node)
        return a * b

    def requantize(self, node: fx.Node) -> Fractions:
        return next(self.operands(node))

    def concat(self, node: fx.Node) -> Fractions:
        return np.concatenate(list(self.operands(node)), axis=1)

    def mean(self, node: fx.Node) -> Fractions:
        x = next(self.operands(node))
        return x.sum(axis=(2, 3), keepdims=True) / Fraction(x.shape[2] * x.shape[3])

    def reshape(self, node: fx.Node) -> Fractions:
        return next(self.operands(node)).reshape(-1, *self.program.shape(node)[1:])

    def max_pool(self, node: fx.Node) -> Fractions:
        x = next(self.operands(node))
        n, c, h, w = x.shape
        pooled = np.empty((n, c, *self.program.shape(node)[2:]), dtype=object)
        for i, j in np.ndindex(pooled.shape[2], pooled.shape[3]):
            rows = slice(max(2 * i - 1, 0), min(2 * i + 2, h))
            columns = slice(max(2 * j - 1, 0), min(2 * j + 2, w))
            pooled[:, :, i, j] = x[:, :, rows, columns].max(axis=(2, 3))
        return pooled

    def pixel_shuffle(self, node: fx.Node) -> Fractions:
        x = next(self.operands(node))
        n, c, h, w = x.shape
        blocks = x.reshape(n, c // 4, 2, 2, h, w).transpose(0, 1, 4, 2, 5, 3)
        return blocks.reshape(n, c // 4, 2 * h, 2 * w)


def test_ideal_arithmetic_is_exact_arithmetic_rounded_once(program: Program) -> None:
    x = inputs()
    expected = Slow(program).run(x)
    actual = fuseq.execute(program, (x,), arithmetic="ideal").integers
    for name, q in actual.items():
        assert np.array_equal(q.numpy(), expected[name]), name


def test_every_value_on_a_grid_is_shown_and_within_its_limits(program: Program) -> None:
    assert program.quantization is not None
    execution = execute(program, (inputs(),))
    nodes = {n.name for n in program.graph.nodes if n.op != "get_attr"}
    assert execution.integers.keys() == nodes & program.quantization.grids.keys()
    for name, q in execution.integers.items():
        grid = program.quantization.grids[name]
        assert q.dtype == torch.int32
        assert grid.qmin <= int(q.min())
        assert int(q.max()) <= grid.qmax
        assert len(q.unique()) > 3, f"{name} is nearly constant: it tests nothing"


def test_results_are_the_reals_of_the_output_integers(program: Program) -> None:
    assert program.quantization is not None
    execution = execute(program, (inputs(),))
    for node, result in zip(program.outputs(), execution.result, strict=True):
        grid = program.quantization.grids[node.name]
        assert torch.equal(result, grid.dequantize(execution.integers[node.name]))
    called = program(inputs())
    assert all(torch.equal(a, b) for a, b in zip(called, execution.result, strict=True))


@pytest.mark.parametrize("arithmetic", ["ort", "ideal"])
def test_integers_depend_on_neither_batch_nor_threads(program: Program, arithmetic: str) -> None:
    x = inputs(5)
    whole = execute(program, (x,), arithmetic).integers
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        parts = [execute(program, (part,), arithmetic).integers for part in x.split([1, 3, 1])]
    finally:
        torch.set_num_threads(threads)
    for name, q in whole.items():
        assert torch.equal(q, torch.cat([part[name] for part in parts])), name


@pytest.mark.parametrize("arithmetic", ["ort", "ideal"])
def test_sums_beyond_what_float32_holds_are_exact(arithmetic: str) -> None:
    """1024 inputs of one sign: accumulators pass 2**24, where float32 skips odd integers."""
    torch.manual_seed(0)
    conv = nn.Conv2d(1024, 2, 1)
    with torch.no_grad():
        conv.weight.uniform_(0.5, 1.0)
        conv.bias.copy_(torch.tensor([-700.0, 3.0]))  # type: ignore[union-attr]
    x = torch.rand(2, 1024, 2, 2) * 0.2 + 0.8
    program = fuseq.quantize(conv.eval(), x, calibration=[x])
    table = program.quantization
    assert table is not None
    (source,), (name,) = program.inputs(), [n.name for n in program.outputs()]
    execution = execute(program, (x,), arithmetic)
    q = execution.integers[source.name].long() - int(table.grids[source.name].zero_point)
    (path,) = [k.removesuffix(".weight") for k in table.integers if k.endswith(".weight")]
    weight = table.integers[f"{path}.weight"].long().flatten(1)
    sums = torch.einsum("oc,nchw->nohw", weight, q)
    assert int(sums.max()) > 2**24
    assert bool((sums % 2 == 1).any())
    sums = sums + table.integers[f"{path}.bias"].long().reshape(-1, 1, 1)
    scale = table.grids[source.name].scale.double() * table.grids[f"{path}.weight"].scale.double()
    expected = [
        to_grid(Fraction(int(a)) * Fraction(float(scale[o])), table.grids[name])
        for (_, o, _, _), a in np.ndenumerate(sums.numpy())
    ]
    actual = execution.integers[name].reshape(-1).tolist()
    # The runtime multiplies the exact sum in float32: one step at ties and nowhere else.
    slack = 0 if arithmetic == "ideal" else 1
    assert max(abs(a - b) for a, b in zip(actual, expected, strict=True)) <= slack


@pytest.mark.parametrize("options", [{"activation": "uint16"}, {"wide": ("stem", "mix", "add")}])
def test_ideal_arithmetic_of_sixteen_bits_is_exact_too(options: dict[str, Any]) -> None:
    program = mixed(options)
    x = inputs()
    expected = Slow(program).run(x)
    for name, q in fuseq.execute(program, (x,), arithmetic="ideal").integers.items():
        assert np.array_equal(q.numpy(), expected[name]), name


def test_rounded_are_the_float_sums_beside_sixteen_bits() -> None:
    """What reads or makes 16 bits, and adds in an order that the machine chooses."""
    assert execute(mixed({}), (inputs(),)).rounded == frozenset()
    program = mixed({"wide": ("grouped",)})
    assert execute(program, (inputs(),)).rounded == {"grouped"}
    assert execute(program, (inputs(),), "ideal").rounded == frozenset()
    program = mixed({"wide": ("concat", "stem")})
    # `stem` and `mix` by the activations on their accumulators; the addition has no order.
    assert execute(program, (inputs(),)).rounded == {"clamp", "depthwise", "relu"}


@pytest.mark.parametrize(("width", "rounded"), [(12, set()), (13, {"avg_pool"})])
def test_a_pool_that_rounds_its_size_up_is_in_float_where_that_matters(
    width: int, rounded: set[str]
) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 8, width) - 0.5
    conv = nn.Conv2d(3, 3, 1)

    def run(ceil_mode: bool) -> Execution:
        net = nn.Sequential(conv, nn.ReLU(), nn.AvgPool2d(2, ceil_mode=ceil_mode))
        return execute(fuseq.quantize(net, x, calibration=[x]), (x,))

    assert run(ceil_mode=True).rounded == rounded
    if not rounded:
        assert torch.equal(run(True).integers["avg_pool"], run(False).integers["avg_pool"])


def test_given_integers_replace_the_values_readers_see(program: Program) -> None:
    x = inputs()
    plain = execute(program, (x,))
    name = next(n for n in plain.integers if n.startswith("relu") or n.startswith("clamp"))
    other = plain.integers[name].flip(0)
    execution = execute(program, (x,), given={name: other})
    assert torch.equal(execution.integers[name], plain.integers[name])
    assert not torch.equal(execution.integers["depthwise"], plain.integers["depthwise"])
    assert torch.equal(execution.integers["depthwise"], plain.integers["depthwise"].flip(0))


def test_only_outputs_are_kept_when_asked(program: Program) -> None:
    lean = execute(program, (inputs(),), intermediates=False)
    assert not lean.integers
    assert not lean.reals
    full = execute(program, (inputs(),))
    assert all(torch.equal(a, b) for a, b in zip(lean.result, full.result, strict=True))


def test_refuses_a_float_program_and_an_unknown_arithmetic(program: Program) -> None:
    with pytest.raises(fuseq.FuseqError, match="unknown arithmetic 'fast'") as caught:
        execute(program, (inputs(),), "fast")
    assert caught.value.code == "FQ007"
    plain = program.clone()
    plain.quantization = None
    with pytest.raises(fuseq.FuseqError, match="not quantized") as caught:
        execute(plain, (inputs(),))
    assert caught.value.code == "FQ201"
