"""What a layer computes on its sums before it rounds: executor and training round once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq.program import Program
from fuseq.quant.grid import Grid, slope_grid

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(3, 8, 3, padding=1),
    "depthwise": lambda: nn.Conv2d(3, 9, 3, groups=3),
    "transposed": lambda: nn.ConvTranspose2d(3, 8, 3, 2, 1, 1),
    "grouped": lambda: nn.ConvTranspose2d(3, 6, 2, 2, groups=3),
}
ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "leaky": lambda channels: nn.LeakyReLU(0.1),
    "prelu": lambda channels: nn.PReLU(channels),
}


class Pair(nn.Module):
    def __init__(self, layer: str, activation: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = LAYERS[layer]()
        channels = self.layer(torch.zeros(1, 3, 8, 8)).shape[1]
        self.activation = ACTIVATIONS[activation](channels)
        for parameter in self.activation.parameters():
            nn.init.uniform_(parameter, 0.05, 0.4)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.layer(x))


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [4 * torch.rand(2, 3, 8, 8, generator=generator) - 2 for _ in range(3)]


def quantized(layer: str, activation: str) -> Program:
    data = batches()
    return fuseq.quantize(Pair(layer, activation).eval(), data[0], target="qnn", calibration=data)


def exact(program: Program, x: Tensor) -> Tensor:
    """What one rounding gives, with float64 tensors and torch's own layers."""
    assert program.quantization is not None
    grids, integers = program.quantization.grids, program.quantization.integers

    def real(name: str, values: Tensor) -> Tensor:
        grid = grids[name]
        scale, zero_point = grid.scale.double(), grid.zero_point
        if grid.axis is not None:
            shape = [1] * values.dim()
            shape[grid.axis] = -1
            scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
        return (values - zero_point).double() * scale

    (call,) = (n for n in program.graph.nodes if n.name in program.quantization.absorbed)
    (after,) = call.users
    layer: Any = program.get(call)
    weight = real(f"{call.target}.weight", integers[f"{call.target}.weight"])
    bias = real(f"{call.target}.bias", integers[f"{call.target}.bias"])
    given = real("x", grids["x"].quantize(x))
    if layer.transposed:
        options = (layer.stride, layer.padding, layer.output_padding)
        sums = F.conv_transpose2d(given, weight, bias, *options)
    else:
        sums = F.conv2d(given, weight, bias, layer.stride, layer.padding, groups=layer.groups)
    if after.op == "call_module":
        activation: Any = program.get(after)
        slopes = activation.weight.detach()
        grid = slope_grid(slopes, "uint8")
        sums = F.prelu(sums, grid.dequantize(grid.quantize(slopes)).double())
    else:
        function: Any = after.target
        sums = function(sums, **after.kwargs)
    return rounded(sums, grids[after.name])


def rounded(real: Tensor, grid: Grid) -> Tensor:
    steps = torch.round(real / grid.scale.double()) + grid.zero_point
    return steps.clamp(grid.qmin, grid.qmax).int()


@pytest.mark.parametrize(
    ("layer", "activation"),
    [(layer, activation) for layer in ("conv", "depthwise") for activation in ACTIVATIONS]
    + [("transposed", "leaky")],
)
def test_the_executor_rounds_once(layer: str, activation: str) -> None:
    program, x = quantized(layer, activation), batches()[1]
    assert program.quantization is not None
    (name,) = program.quantization.absorbed.values()
    ours = fuseq.execute(program, (x,)).integers[name]
    assert ours.unique().numel() > 30
    wanted = exact(program, x)
    # float64 sums of reals and of integers fall on other sides of a tie once in a great while
    assert (ours - wanted).abs().max() <= 1
    assert (ours != wanted).double().mean() < 1e-3


def test_a_transposed_convolution_has_a_grid_before_a_prelu() -> None:
    table = quantized("transposed", "prelu").quantization
    assert table is not None
    assert not table.absorbed
    assert "layer" in table.grids


def test_one_scale_for_groups() -> None:
    table = quantized("grouped", "leaky").quantization
    assert table is not None
    assert table.grids["layer.weight"].scale.dim() == 0
    assert table.grids["layer.bias"].scale.dim() == 0


@pytest.mark.parametrize("learn_scales", [False, True])
@pytest.mark.parametrize(
    ("layer", "activation"),
    [("conv", "leaky"), ("depthwise", "prelu"), ("transposed", "leaky"),
     ("grouped", "leaky"), ("transposed", "prelu")],
)  # fmt: skip
def test_training_is_the_executor(layer: str, activation: str, learn_scales: bool) -> None:
    data, model = batches(), Pair(layer, activation).train()
    qat = fuseq.qat.prepare(
        model, data[0], target="qnn", calibration=data, learn_scales=learn_scales
    )
    optimizer = torch.optim.SGD(qat.parameters(), lr=0.02)
    before = {name: p.detach().clone() for name, p in qat.named_parameters()}
    curriculum = fuseq.qat.Curriculum(qat, observe=1, tune=1, freeze=1)
    for epoch in range(3):
        curriculum.step(epoch)
        for x in data:
            optimizer.zero_grad()
            (qat(x) - 0.3).square().mean().backward()
            optimizer.step()
    moved = [name for name, p in qat.named_parameters() if not torch.equal(p, before[name])]
    assert {name.rsplit(".", 1)[-1] for name in moved} >= {"weight", "bias"}
    if activation == "prelu":
        assert sum(name.endswith("weight") for name in moved) == 2
    with torch.no_grad():
        trained, shipped = qat.eval()(data[1]), fuseq.qat.finalize(qat)(data[1])
    assert torch.equal(trained, shipped)


def test_gradients_are_those_of_the_float_activation() -> None:
    """Away from both ends of the grid and with fine steps, rounding is the identity."""
    data, model = batches(), Pair("conv", "leaky").train()
    qat = fuseq.qat.prepare(model, data[0], target="qnn", calibration=data, activation="uint16")
    qat(data[0]).square().mean().backward()
    model(data[0]).square().mean().backward()
    ours = {p.shape: p.grad for p in qat.parameters()}
    for parameter in model.parameters():
        assert parameter.grad is not None
        found = ours[parameter.shape]
        assert found is not None
        error = (found - parameter.grad).norm() / parameter.grad.norm()
        assert float(error) < 0.02


class Joined(nn.Module):
    """A concat of a value that only it reads and of one that something else reads too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.narrow, self.wide = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = 3 * torch.tanh(self.wide(x))
        return self.last(torch.relu(torch.cat([self.narrow(x), wide], 1))) + wide[:, :3]


def test_a_layer_that_only_a_concat_reads_writes_onto_its_grid() -> None:
    """HTP does so, past the ends of the grid that the layer would have had."""
    data, model = batches(), Joined().eval()
    program = fuseq.quantize(model, data[0], target="qnn", calibration=data)
    table = program.quantization
    assert table is not None
    assert set(table.absorbed) == {"narrow"}
    assert "narrow" not in table.grids
    assert "mul" in table.grids
    (edge,) = table.absorbed.values()
    (concat,) = next(node for node in program.graph.nodes if node.name == edge).users
    assert table.grids[edge] == table.grids[concat.name]
    x = 3 * data[1]
    integers = fuseq.execute(program, (x,)).integers
    assert torch.equal(integers[edge], integers[concat.name][:, :4])


class Cut(nn.Module):
    """A concat of two activations that layers compute."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.narrow, self.wide = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        narrow = torch.relu(self.narrow(x))
        wide = nn.functional.leaky_relu(3 * self.wide(x), 0.1)
        return self.last(torch.cat([narrow, wide], 1))


def test_an_activation_that_only_a_concat_reads_is_rounded_once() -> None:
    """On the concat's grid, whose ends are not where a ReLU cuts."""
    data = batches()
    program = fuseq.quantize(Cut().eval(), data[0], target="qnn", calibration=data)
    table = program.quantization
    assert table is not None
    edge = table.absorbed["narrow"]
    assert table.absorbed["relu"] == edge
    assert not {"narrow", "relu"} & set(table.grids)
    grid = table.grids[edge]
    assert int(grid.zero_point) > 0
    x = 3 * data[1]
    integers = fuseq.execute(program, (x,)).integers
    layer = program.module.get_submodule("narrow")
    real = table.grids["x"].dequantize(integers["x"])
    for name in ("weight", "bias"):
        path = f"narrow.{name}"
        values = table.grids[path].dequantize(table.integers[path])
        getattr(layer, name).data = values
    with torch.no_grad():
        exact = torch.relu(layer.double()(real.double()))
    assert torch.equal(integers[edge], grid.quantize(exact))


class Uneven(nn.Module):
    """A concat of values up to 6 and of much larger ones, all positive."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.narrow, self.wide = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.relu6(self.narrow(x)), torch.relu(40 * self.wide(x))], 1)


@pytest.mark.parametrize("target", ["qnn", "tflite"])
def test_a_clamp_of_one_part_does_not_end_the_grid_of_a_concat(target: str) -> None:
    data, model = batches(), Uneven().eval()
    program = fuseq.quantize(model, data[0], target=target, calibration=data)
    table = program.quantization
    assert table is not None
    assert {"narrow", "clamp"} <= set(table.absorbed)
    grid = table.grids["concat"]
    largest = max(float(model(x).detach().max()) for x in data)
    assert largest > 20
    assert float(grid.scale) * (grid.qmax - int(grid.zero_point)) >= largest * 0.99


@pytest.mark.parametrize("network", [Joined, Cut])
def test_training_writes_onto_the_grid_of_a_concat(network: type[nn.Module]) -> None:
    data = batches()
    qat = fuseq.qat.prepare(network().train(), data[0], target="qnn", calibration=data)
    optimizer = torch.optim.SGD(qat.parameters(), lr=0.01)
    for x in data:
        optimizer.zero_grad()
        qat(x).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        assert torch.equal(qat.eval()(data[1]), fuseq.qat.finalize(qat)(data[1]))
