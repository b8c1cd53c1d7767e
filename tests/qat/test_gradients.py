"""Gradients of training against the textbook's fake quantization, in plain autograd and float64.

    x^ = s * (clamp(rint(x / s) + z, low, high) - z),    dx^/dx = 1 inside the range, 0 outside

(Jacob et al., CVPR 2018, section 3), a layer being `f(x^, w^, b^)` fake-quantized in turn, and for
scales that are learned eq. 3 of LSQ (Esser et al., ICLR 2020)

    dx^/ds = rint(x / s) - x / s   inside the range,   low - z or high - z   outside

times `1 / sqrt(elements * largest integer)`. Nothing of this is shared with `fuseq.qat`.

Float32 and float64 may round a half to different integers, and so may the runtime, so examples with
a value near one are passed over. What is left is the rounding of float32 sums of a few hundred
terms.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from torch import Tensor, nn

import fuseq
from fuseq.qat import QatModel

ROUNDING = 1e-5
"""Of the largest gradient; of the terms whose difference it is, for gradients of scales."""

Edge = Callable[[str, Tensor], Tensor]
"""What happens to a value on its grid, by the name of its node."""


class Network(nn.Module):
    """One layer, or ops without parameters, of one or two inputs."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer = LAYERS[kind]() if kind in LAYERS else nn.Identity()

    def forward(self, *inputs: Tensor) -> Tensor:
        y = self.compute(lambda name, x: x, *inputs)
        return ACTIVATIONS[self.kind](y) if self.kind in ACTIVATIONS else y

    def compute(self, edge: Edge, *inputs: Tensor) -> Tensor:
        """Without an activation that is absorbed: the clamp of the grid is what is left of it."""
        return OPS[self.kind](edge, *inputs) if self.kind in OPS else self.layer(*inputs)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "relu": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "clamp6": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, stride=2, groups=4),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 4, 2, 1, groups=2),
    "linear": lambda: nn.Linear(4, 7),
}
ACTIVATIONS = {"relu": torch.relu, "clamp6": F.relu6}
OPS: dict[str, Callable[..., Tensor]] = {
    "add": lambda edge, a, b: a + b,
    "sub": lambda edge, a, b: a - b,
    "mul": lambda edge, a, b: a * b,
    "concat": lambda edge, a, b: torch.cat(
        (edge("concat", edge("mul", a * b)), edge("concat", b)), 1
    ),
    "square": lambda edge, x: x * x,
    "sigmoid": lambda edge, x: torch.sigmoid(x),
    "tanh": lambda edge, x: torch.tanh(x),
    "avg_pool": lambda edge, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "mean": lambda edge, x: x.mean((2, 3), keepdim=True),
}
PAIRS = ("add", "sub", "mul", "concat")


@functools.cache
def prepared(kind: str, learn_scales: bool) -> QatModel:
    """Prepared once; each example sets weights and grids."""
    torch.manual_seed(0)
    shape = (2, 4) if kind == "linear" else (2, 4, 8, 8)
    inputs = tuple(torch.randn(shape) for _ in range(2 if kind in PAIRS else 1))
    model = fuseq.qat.prepare(
        Network(kind), inputs, calibration=[inputs], passes="", learn_scales=learn_scales
    )
    model.stage(observing=learn_scales, weight_grids_frozen=not learn_scales)
    return model


@dataclass(frozen=True)
class Case:
    """Numbers of one example: batch, height and width, and grids in turn."""

    size: tuple[int, int, int]
    scales: tuple[float, float, float]
    zero_points: tuple[int, int, int]
    seed: int


CASES = st.builds(
    Case,
    size=st.tuples(st.integers(1, 3), st.integers(4, 9), st.integers(4, 9)),
    scales=st.tuples(*(st.floats(2**-8, 0.25, width=32) for _ in range(3))),
    zero_points=st.tuples(*(st.sampled_from((0, 3, 100, 128, 255)) for _ in range(3))),
    seed=st.integers(0, 2**31),
)


@dataclass(frozen=True)
class Taken:
    """One fake quantization: its result, scale, the value in steps, and the ends of the range."""

    result: Tensor
    scale: Tensor
    steps: Tensor
    low: int
    high: int

    @property
    def gradient(self) -> Tensor:
        assert self.result.grad is not None
        return self.result.grad

    def size(self) -> float:
        """Sum of the terms that the value adds to the loss, regardless of their sign."""
        value = self.scale * self.steps.clamp(self.low - 0.5, self.high + 0.5)
        return float((self.gradient * value).abs().sum())

    def scale_gradient(self) -> Tensor:
        """Eq. 3 of LSQ, element by element."""
        integers = self.steps.round()
        inside = (self.low <= integers) & (integers <= self.high)
        cut = integers.clamp(self.low, self.high)
        return self.gradient * torch.where(inside, integers - self.steps, cut)


class Example:
    """A model with the numbers of an example in it, and the textbook on the same numbers."""

    def __init__(self, kind: str, case: Case, learn_scales: bool = False) -> None:
        self.kind, self.model = kind, prepared(kind, learn_scales)
        generator = torch.Generator().manual_seed(case.seed)
        program = self.model.program
        (self.output,) = (node.name for node in program.outputs())
        self.names = [node.name for node in program.inputs()]
        self.taken: dict[str, list[Taken]] = {}
        for i, name in enumerate(self.model.index):
            self._set_grid(name, case.scales[i % 3], case.zero_points[i % 3])
        if kind == "relu":
            self._set_grid(self.output, case.scales[2], 0)
        if kind == "clamp6":
            self._set_grid(self.output, min(case.scales[2], 6 / 256), 0)
        batch, height, width = case.size
        shape = (batch, 4) if kind == "linear" else (batch, 4, height, width)
        self.inputs = [
            # Wider than the grid, so that some values are cut.
            (away_from_halves(384, shape, generator) * self.grid(name)[0]).requires_grad_()
            for name in self.names
        ]
        layers = [node for node in program.graph.nodes if node.op == "call_module"]
        self.layer: Any = program.get(layers[0]) if layers else None
        if layers:
            self._set_weights(generator)

    def _set_grid(self, name: str, scale: float, zero_point: int) -> None:
        index = self.model.index[self.model.structure.group[name]]
        with torch.no_grad():
            self.model.activation_scale[index] = scale
            self.model.activation_zero_point[index] = zero_point

    def _set_weights(self, generator: torch.Generator) -> None:
        layer, scale = self.layer, self.weight_scale()
        with torch.no_grad():
            scale.copy_(torch.rand(scale.shape, generator=generator) * 0.02 + 0.001)
            steps = away_from_halves(160, layer.weight.shape, generator)
            layer.weight.copy_(steps * self.by_channel(scale))
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) * 3)

    def grid(self, name: str) -> tuple[Tensor, int]:
        index = self.model.index[self.model.structure.group[name]]
        zero_point = int(self.model.activation_zero_point[index])
        return self.model.activation_scale[index].detach(), zero_point

    def weight_scale(self) -> Tensor:
        (name,) = [n for n in self.model.state_dict() if n.endswith("_weight_scale")]
        result: Tensor = getattr(self.model, name)
        return result

    def by_channel(self, scale: Tensor) -> Tensor:
        dims = self.layer.weight.dim()
        return scale.reshape([-1 if d == self.axis else 1 for d in range(dims)])

    @property
    def axis(self) -> int:
        return 1 if self.kind == "transposed" else 0

    def fake_quantized(
        self, name: str, x: Tensor, scale: Tensor, zero_point: int, low: int, high: int
    ) -> Tensor:
        scale, low, high = scale.detach().double(), low - zero_point, high - zero_point
        steps = x.detach() / scale
        assume(float((steps.remainder(1) - 0.5).abs().min()) > 2e-5)
        inside = steps.round().clamp(low, high) == steps.round()
        straight = torch.where(inside, x, x.detach())
        result = straight + (scale * steps.round().clamp(low, high) - straight).detach()
        result.retain_grad()
        self.taken.setdefault(name, []).append(Taken(result, scale, steps, low, high))
        return result

    def on_grid(self, name: str, x: Tensor) -> Tensor:
        return self.fake_quantized(name, x, *self.grid(name), 0, 255)

    def textbook(self) -> list[Tensor]:
        """Backward through plain autograd; the leaves, whose gradients are what counts."""
        leaves = [x.detach().double().requires_grad_() for x in self.inputs]
        fake = [self.on_grid(name, x) for name, x in zip(self.names, leaves, strict=True)]
        network = Network(self.kind)
        if self.layer is not None:
            leaves += self._fake_parameters(network)
        y = self.on_grid(self.output, network.compute(self.on_grid, *fake))
        self.upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        (y * self.upstream).sum().backward()
        return leaves

    def _fake_parameters(self, network: nn.Module) -> list[Tensor]:
        scale, target = self.weight_scale().detach(), cast(Any, network.layer)
        weight, bias = (
            p.detach().double().requires_grad_() for p in (self.layer.weight, self.layer.bias)
        )
        both = (self.grid(self.names[0])[0] * scale).repeat(len(bias) // len(scale))
        del target.weight, target.bias
        target.weight = self.fake_quantized("w", weight, self.by_channel(scale), 0, -127, 127)
        target.bias = self.fake_quantized("b", bias, both, 0, -(2**31), 2**31 - 1)
        return [weight, bias]

    def trained(self) -> list[Tensor]:
        """Backward through the prepared model; the leaves, in the same order."""
        self.model.zero_grad()
        (self.model(*self.inputs) * self.upstream).sum().backward()
        parameters = [] if self.layer is None else [self.layer.weight, self.layer.bias]
        return [*self.inputs, *parameters]


def away_from_halves(most: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Steps between integers, up to 0.45 from one of them."""
    whole = torch.randint(-most, most + 1, shape, generator=generator)
    return whole + (torch.rand(shape, generator=generator) - 0.5) * 0.9


EXAMPLES = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


@pytest.mark.parametrize("kind", [*LAYERS, *OPS])
@EXAMPLES
@given(case=CASES)
def test_inputs_weights_and_biases_get_the_textbooks_gradient(kind: str, case: Case) -> None:
    example = Example(kind, case)
    textbook = example.textbook()
    for ours, theirs in zip(example.trained(), textbook, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        error = float((ours.grad - theirs.grad).abs().max())
        # A flat sigmoid has a slope that float32 rounds to a step of the numbers near one.
        flat = torch.finfo(torch.float32).eps * float(example.upstream.abs().max())
        assert error <= ROUNDING * float(theirs.grad.abs().max()) + flat


LEARNED = ["conv", "relu", "depthwise", "transposed", "linear", "add", "mul", "concat", "sigmoid"]


@pytest.mark.parametrize("kind", LEARNED)
@EXAMPLES
@given(case=CASES)
def test_scales_get_the_gradient_of_lsq(kind: str, case: Case) -> None:
    example = Example(kind, case, learn_scales=True)
    example.textbook()
    example.trained()
    # Each is a difference of sums over the values of a network, in float32.
    taken = [one for found in example.taken.values() for one in found]
    noise = ROUNDING * sum(one.size() for one in taken)
    expected = {
        name: sum(float(one.scale_gradient().sum()) for one in found)
        for name, found in example.taken.items()
        if name not in ("w", "b")
    }
    if example.layer is not None:
        # The scale of a bias is that of the weight times that of the input.
        scale, source = example.weight_scale(), example.names[0]
        bias = example.taken["b"][0].scale_gradient().reshape(-1, len(scale)).sum(0)
        weight = example.taken["w"][0].scale_gradient().transpose(0, example.axis)
        log = example.model.get_parameter("layer_weight_scale_log")
        ours = learned(log, scale)
        theirs = weight.flatten(1).sum(1) + bias * example.grid(source)[0]
        assert bool(((ours - theirs).abs() * scale.detach() <= noise).all())
        expected[source] += float((bias * scale.detach()).sum())
    structure = example.model.structure
    for name, gradient in expected.items():
        group = structure.group[name]
        model = example.model
        all_ours = learned(model.activation_scale_log, model.activation_scale)
        error = abs(float(all_ours[example.model.index[group]]) - gradient)
        assert error * float(example.grid(name)[0]) <= noise


def learned(log: Any, scale: Tensor) -> Tensor:
    """Gradient of a scale, from that of its logarithm, `s dL/ds`."""
    gradient: Tensor = log.grad
    return gradient.double() / scale.detach().double()
