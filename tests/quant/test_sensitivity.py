import gc
import math
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fuseq
from fuseq import plugins
from fuseq.program import Program
from fuseq.quant.sensitivity import Sensitivity, sensitivities
from fuseq.user_code import load_function
from tests.networks import gated, mobilenet_v2

BACKEND = plugins.load("backends", "onnx")()


class Net(nn.Module):
    """Two inputs, two outputs, a skip, a concat with shared grids, a float island."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 1, bias=False)
        self.c, self.d = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        a, b = F.relu(self.a(x)), self.b(y)
        c = F.max_pool2d(self.c(a) + b, 2)
        d = F.elu(self.d(torch.cat([F.max_pool2d(a, 2), c], 1)))
        return d, torch.sigmoid(c)


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.rand(2, 3, 8, 8, generator=generator), torch.rand(2, 3, 8, 8, generator=generator))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return fuseq.quantize(Net().eval(), batches()[0], calibration=batches())


def rounded(program: Program, part: Sensitivity, inputs: tuple[Tensor, ...]) -> Any:
    """All of the float program again, with the part rounded: slow, and simple."""
    table = program.quantization
    assert table is not None
    grids, integers = table.grids, table.integers
    copy = program.clone()
    if part.kind == "weights":
        (node,) = [n for n in copy.graph.nodes if n.name == part.node]
        for name, parameter in copy.get(node).named_parameters():
            key = f"{node.target}.{name}"
            parameter.data = grids[key].dequantize(integers[key])
        return copy.module(*inputs)

    class Rounding(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            if node.name not in part.members:
                return value
            return grids[node.name].dequantize(grids[node.name].quantize(value))

    return Rounding(copy.module).run(*inputs)


def test_noise_is_that_of_the_part_rounded_alone(program: Program) -> None:
    found = sensitivities(program, batches())
    assert {part.node for part in found if part.kind == "weights"} == {"a", "b", "c", "d"}
    for part in found:
        squares, power = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for inputs in batches():
            with torch.no_grad():
                for index, (y, z) in enumerate(
                    zip(program.module(*inputs), rounded(program, part, inputs), strict=True)
                ):
                    squares[index] += (y - z).double().square().sum()
                    power[index] += y.double().square().sum()
        assert part.noise == pytest.approx(float((squares / power).mean()), rel=1e-9), part
        assert part.sqnr_db == pytest.approx(-10 * math.log10(part.noise))


def test_parts_are_sorted_and_share_one_whole(program: Program) -> None:
    found = sensitivities(program, batches())
    assert [p.noise for p in found] == sorted((p.noise for p in found), reverse=True)
    assert sum(part.share for part in found) == pytest.approx(1.0)
    grids = program.quantization.grids  # type: ignore[union-attr]
    for part in found:
        assert len({id(grids[name]) for name in part.members if part.kind == "value"}) <= 1
    named = [name for part in found if part.kind == "value" for name in part.members]
    assert sorted(named) == sorted(n.name for n in program.graph.nodes if n.name in grids)


class Chain(nn.Module):
    """Five layers of eight channels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def chain(data: Sequence[Tensor], **options: Any) -> Program:
    torch.manual_seed(0)
    model = Chain().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(2.0 if name.endswith("weight") else 1.0)
    for edit in options.pop("edits", ()):
        edit(model.layers)
    return fuseq.quantize(model, data[0], calibration=data, **options)


@torch.no_grad()
def one_weight_is_huge(layers: Any) -> None:
    """Rows of the third layer get a scale 40 times too coarse; the input they weigh is dark."""
    layers[1].weight[0] *= 0.01
    layers[1].bias[0] *= 0.01
    layers[2].weight[:, 0] *= 40


@torch.no_grad()
def one_channel_is_huge(layers: Any) -> None:
    """The value behind the second layer has a grid 50 times too coarse."""
    layers[1].weight[0] *= 50
    layers[1].bias[0] *= 50
    layers[2].weight[:, 0] /= 50


@pytest.mark.parametrize(
    ("edit", "kind", "node"),
    [(one_weight_is_huge, "weights", "layers_2"), (one_channel_is_huge, "value", "relu_1")],
)
def test_a_planted_fault_is_named_first_and_a_budget_of_one_mends_it(
    edit: Any, kind: str, node: str
) -> None:
    data = [torch.rand(2, 8, 16, 16) for _ in range(3)]
    faulty = chain(data, edits=[edit])
    first, second = sensitivities(faulty, data)[:2]
    assert (first.kind, first.node) == (kind, node)
    assert first.share > 0.9 > 9 * second.share
    for form in ("float", "int16"):
        mended = chain(data, edits=[edit], worst=1, worst_as=form)
        gain = -10 * math.log10(noise(mended, data) / noise(faulty, data))
        assert (gain > 9) is (kind == "value" or form == "float"), (form, gain)
        table = mended.quantization
        assert table is not None
        if form == "float":
            assert node not in table.grids or node not in table.integer
        elif kind == "value":
            assert table.grids[node].dtype == "uint16"
        (ranking,) = [[*mended.details(Sensitivity)]]
        assert ranking[0] == first


def noise(program: Program, data: Sequence[Tensor]) -> float:
    with torch.no_grad():
        return sum(float((program(x) - program.module(x)).square().mean()) for x in data)


@pytest.mark.parametrize("network", [gated, mobilenet_v2], ids=lambda module: module.__name__)
@pytest.mark.parametrize("form", ["float", "int16"])
def test_a_budget_helps_and_the_file_still_agrees(network: Any, form: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    data = [torch.rand(2, 3, 32, 32, generator=generator) for _ in range(2)]
    fused = fuseq.fuse(network.small(), data[0])
    passes = f"legalize,quantize{{worst=3,worst_as={form}}}"
    bundle = fuseq.lower(
        fused, backend=BACKEND, out=tmp_path / "bundle", calibration=data, passes=passes
    )
    assert bundle.result is not None
    bundle.result.raise_for_status()
    parity = [check for check in bundle.result.checks if check.id.startswith("parity-")]
    assert parity
    assert not any(check.metrics["differing"] for check in parity)
    plain = fuseq.quantize(fused, calibration=data)
    chosen = fuseq.quantize(fused, calibration=iter(data), worst=3, worst_as=form)  # type: ignore[arg-type]
    assert noise(chosen, data) < 0.9 * noise(plain, data)


def test_the_sum_at_risk_in_the_super_resolution_student() -> None:
    """With an offset that both terms of the global skip carry, their sum has the widest range."""
    file = Path(__file__).parents[2] / "examples" / "sisr_x3" / "model.py"
    module, get_model = load_function(str(file), "get_model")
    data = [x for x, _ in zip(module.calibration_data(), range(4), strict=False)]
    fused = fuseq.fuse(get_model(), data[0])
    layers: Any = dict(fused.module.named_modules())
    with torch.no_grad():
        for name in ("stem", "blocks_7"):
            layers[name].bias[0] += 8
        for reader, offset in (("blocks_0", 8), ("head", 16)):
            layers[reader].bias -= offset * layers[reader].weight[:, 0].sum((1, 2))
    found = sensitivities(fuseq.quantize(fused, calibration=data), data)
    values = [part.node for part in found if part.kind == "value"]
    assert values[0].startswith("add")


def test_one_batch_is_held_at_a_time() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def stream() -> Iterator[Tensor]:
        for _ in range(5):
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 1
            batch = torch.rand(1, 8, 8, 8)
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    program = chain([torch.rand(1, 8, 8, 8)])
    seen: list[int] = []
    sensitivities(program, stream(), seen.append)
    assert seen == [1, 2, 3, 4, 5]


def test_refuses_what_it_cannot_use(program: Program) -> None:
    floating = fuseq.capture(Net().eval(), batches()[0])
    for given, data, code in [(floating, batches(), "FQ201"), (program, [], "FQ006")]:
        with pytest.raises(fuseq.FuseqError) as caught:
            sensitivities(given, data)
        assert caught.value.code == code
