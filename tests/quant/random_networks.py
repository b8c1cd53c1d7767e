"""Random quantizable networks: what the parity fuzz lowers and holds against the runtime.

A network is a list of steps over earlier values. Every step is run at two sizes while the network
grows, and kept only if it runs at both, so that operands always fit whatever the frame size.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Function: TypeAlias = Callable[..., Tensor]
"""Takes the network, for its layers, and operands: a copy of the network must use its own."""

Step: TypeAlias = tuple[Function, tuple[int, ...]]
SIZES = ((1, 3, 12, 16), (2, 3, 44, 80))
"""The captured size, and the one the parity check goes to when sizes are free."""


class RandomNetwork(nn.Module):
    """A network drawn from a seed.

    Attributes:
        chosen: values that are outputs.
    """

    def __init__(self, seed: int, length: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.constants = nn.ParameterList()
        self._steps: list[Step] = []
        draw = random.Random(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.input_scale = draw.choice((0.1, 1.0, 1.0, 20.0))
            self.centered = draw.random() < 0.5
            values = [[self.inputs(size, torch.Generator().manual_seed(seed)) for size in SIZES]]
            while len(self._steps) < length:
                function, operands = _GROWERS[draw.choice(_WEIGHTED)](self, draw, values)
                grown = _run_at_both(self, function, [values[i] for i in operands])
                if grown is not None:
                    self._steps.append((function, operands))
                    values.append(grown)
        used = {i for _, operands in self._steps for i in operands}
        ends = [i for i in range(1, len(values)) if i not in used]
        extra = [i for i in range(len(values)) if draw.random() < 0.1]
        self.chosen = list(dict.fromkeys(ends[-3:] + extra))

    def inputs(self, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Random input of a size, in the range this network is meant for."""
        x = torch.rand(size, generator=generator)
        return (x - 0.5 if self.centered else x) * self.input_scale

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for function, operands in self._steps:
            values.append(function(self, *(values[i] for i in operands)))
        return tuple(values[i] for i in self.chosen)

    def layer(self, module: nn.Module) -> int:
        """Register a layer, its weights spread over a random range; returns its number."""
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(2.0 ** float(torch.empty(()).uniform_(-1, 2)))
        self.layers.append(module)
        return len(self.layers) - 1

    def constant(self, value: Tensor) -> int:
        """Register a constant; returns its number."""
        self.constants.append(nn.Parameter(value, requires_grad=False))
        return len(self.constants) - 1


Values: TypeAlias = list[list[Tensor]]
Grower: TypeAlias = Callable[[RandomNetwork, random.Random, Values], Step]


def _run_at_both(
    net: RandomNetwork, function: Function, operands: list[list[Tensor]]
) -> list[Tensor] | None:
    try:
        with torch.no_grad():
            grown = [function(net, *pair) for pair in zip(*operands, strict=True)]
    except (RuntimeError, ValueError):
        return None
    if not all(0 < g.numel() < 200_000 for g in grown):
        return None
    return grown if all(float(g.abs().max()) < 1e4 for g in grown) else None


def _image(draw: random.Random, values: Values) -> int:
    """A four-dimensional value, late ones more often."""
    images = [i for i, v in enumerate(values) if v[0].dim() == 4]
    return images[max(draw.randrange(len(images)), draw.randrange(len(images)))]


def _conv(net: RandomNetwork, draw: random.Random, values: Values) -> Step:
    at = _image(draw, values)
    channels = values[at][0].shape[1]
    kind = draw.choice(("full", "full", "depthwise", "grouped"))
    groups = {"full": 1, "depthwise": channels, "grouped": 2 if channels % 2 == 0 else 1}[kind]
    out = channels * draw.choice((1, 1, 2)) if groups > 1 else draw.choice((1, 3, 4, 8, 12, 16, 17))
    kernel = draw.choice(((1, 1), (3, 3), (3, 3), (5, 5), (1, 3), (2, 2)))
    module = nn.Conv2d(
        channels, out, kernel, stride=draw.choice((1, 1, 1, 2)), groups=groups,
        padding=draw.choice((0, 1, 1, 2, (1, 0))), dilation=draw.choice((1, 1, 1, 2)),
        bias=draw.random() < 0.8,
    )  # fmt: skip
    if draw.random() < 0.1:
        with torch.no_grad():
            module.weight[0] = 0.0
    layer = net.layer(module)
    if draw.random() < 0.6:
        activation = _activation(net, draw, out)
        return (lambda net, x: activation(net, net.layers[layer](x))), (at,)
    return (lambda net, x: net.layers[layer](x)), (at,)


def _activation(net: RandomNetwork, draw: random.Random, channels: int) -> Function:
    low, high = draw.choice(((0.0, 1.0), (-1.0, 1.0), (-0.5, 2.0), (0.25, 0.75), (-2.0, -0.1)))
    slope = draw.choice((0.01, 0.1, 0.2))
    choices: list[Callable[[Tensor], Tensor]] = [
        torch.relu, torch.relu, F.relu6, F.hardtanh, torch.sigmoid, torch.tanh, F.hardswish,
        F.hardsigmoid, F.silu, F.gelu, F.elu,
        lambda x: torch.clamp(x, low, high),
        lambda x: torch.clamp(x, min=low),
        lambda x: torch.clamp(x, max=high),
        lambda x: F.leaky_relu(x, slope),
        lambda x: F.softmax(x, 1),
        lambda x: x * x,
    ]  # fmt: skip
    if draw.random() < 0.05:
        layer = net.layer(nn.PReLU(draw.choice((1, channels))))
        return lambda net, x: net.layers[layer](x)
    return _alone(draw.choice(choices))


def _alone(function: Callable[..., Tensor]) -> Function:
    """A function that needs nothing of the network."""
    return lambda net, *values: function(*values)


def _activate(net: RandomNetwork, draw: random.Random, values: Values) -> Step:
    at = _image(draw, values)
    return _activation(net, draw, values[at][0].shape[1]), (at,)


def _partner(draw: random.Random, values: Values, at: int) -> int:
    """A value that broadcasts with another at both sizes, most often of the same shape."""

    def fits(i: int) -> bool:
        pairs = zip(values[i], values[at], strict=True)
        return all(_broadcast(a.shape, b.shape) for a, b in pairs)

    same = [i for i, v in enumerate(values) if v[0].shape == values[at][0].shape and fits(i)]
    loose = [i for i in range(len(values)) if fits(i)]
    return draw.choice(same if draw.random() < 0.7 else loose)


def _broadcast(a: torch.Size, b: torch.Size) -> bool:
    return len(a) == len(b) and all(m == n or 1 in (m, n) for m, n in zip(a, b, strict=True))


def _binary(net: RandomNetwork, draw: random.Random, values: Values) -> Step:
    at = _image(draw, values)
    function = draw.choice((torch.add, torch.add, torch.mul, torch.mul, torch.sub))
    operands = [at, _partner(draw, values, at)]
    draw.shuffle(operands)
    if draw.random() < 0.3:
        return _alone(lambda a, b: torch.relu(function(a, b))), tuple(operands)
    return _alone(function), tuple(operands)


def _scalar(net: RandomNetwork, draw: random.Random, values: Values) -> Step:
    at, number = _image(draw, values), draw.choice((0.5, -1.5, 2.0, 0.1))
    choices: list[Callable[[Tensor], Tensor]] = [
        lambda x: x + number,
        lambda x: x * number,
        lambda x: x - number,
        lambda x: number - x,
        lambda x: x / number,
        lambda x: -x,
    ]
    return _alone(draw.choice(choices)), (at,)


def _constant(net: RandomNetwork, draw: random.Random, values: Values) -> Step:
    at = _image(draw, values)
    constant = net.constant(torch.randn(1, values[at][0].shape[1], 1, 1))
    function = draw.choice((torch.add, torch.mul, torch.mul, torch.sub))
    return (lambda net, x: function(x, net.constants[constant])), (at,)


def _squeeze_excite(net: RandomNetwork, draw: random.Random, values: Values) -> Step:
    at = _image(draw, values)
    channels = values[at][0].shape[1]
    down, up = net.layer(nn.Conv2d(channels, 2, 1)), net.layer(nn.Conv2d(2, channels, 1))
    gate = draw.choice((torch.sigmoid, F.hardsigmoid))

    def block(net: RandomNetwork, x: Tensor) -> Tensor:
        hidden = torch.relu(net.layers[down](x.mean((2, 3), keepdim=True)))
        return x * gate(net.layers[up](hidden))

    return block, (at,)


def _norm(net: RandomNetwork, draw: random.Random, values: Values) -> Step:
    at = _image(draw, values)
    if draw.random() < 0.3:
        return _alone(lambda x: x * torch.rsqrt((x * x).mean((2, 3), keepdim=True) + 0.1)), (at,)
    norm = nn.InstanceNorm2d(values[at][0].shape[1], affine=draw.random() < 0.7)
    layer = net.layer(norm)
    return (lambda net, x: net.layers[layer](x)), (at,)


def _concat(net: RandomNetwork, draw: random.Random, values: Values) -> Step:
    at, dim = _image(draw, values), draw.choice((1, 1, 1, 2, 3))

    def fits(i: int) -> bool:
        pairs = zip(values[i], values[at], strict=True)
        return all(
            a.dim() == 4 and all(a.shape[d] == b.shape[d] for d in range(4) if d != dim)
            for a, b in pairs
        )

    others = [i for i in range(len(values)) if fits(i)]
    operands = tuple(draw.choice(others) for _ in range(draw.choice((1, 1, 2))))
    return _alone(lambda *parts: torch.cat(parts, dim)), (at, *operands)


def _pool(net: RandomNetwork, draw: random.Random, values: Values) -> Step:
    ceil = draw.random() < 0.2
    kernel, stride, padding = draw.choice(((2, 2, 0), (3, 1, 1), (3, 2, 1), ((2, 3), (1, 2), 0)))
    include = draw.random() < 0.5
    choices: list[Callable[[Tensor], Tensor]] = [
        lambda x: F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil),
        lambda x: F.avg_pool2d(x, kernel, stride, padding, ceil, include and not ceil),
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: x.mean(1, keepdim=True),
    ]
    return _alone(draw.choice(choices)), (_image(draw, values),)


def _move(net: RandomNetwork, draw: random.Random, values: Values) -> Step:
    at = _image(draw, values)
    part, parts = draw.randrange(2), draw.choice((2, 2, 3))
    choices: list[Callable[[Tensor], Tensor]] = [
        lambda x: F.pixel_shuffle(x, 2),
        lambda x: F.pixel_unshuffle(x, 2),
        lambda x: x.chunk(parts, 1)[-part],
        lambda x: x[:, ::2],
        lambda x: x[..., 1:-1, 2:],
        lambda x: x[:, :, ::2, ::2],
        lambda x: F.pad(x, (1, 2, 0, 1)),
        lambda x: F.pad(x, (1, 1, 1, 1), value=0.5),
        lambda x: F.pad(x, (1, 1, 2, 2), mode="reflect"),
        lambda x: F.pad(x, (1, 1, 1, 1), mode="replicate"),
        lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
        lambda x: x.transpose(2, 3),
        lambda x: _shuffled(x),
    ]
    return _alone(draw.choice(choices)), (at,)


def _shuffled(x: Tensor) -> Tensor:
    """ShuffleNet's channel shuffle."""
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def _head(net: RandomNetwork, draw: random.Random, values: Values) -> Step:
    at = _image(draw, values)
    layer = net.layer(nn.Linear(values[at][0].shape[1], 5, bias=draw.random() < 0.7))
    choices: list[Function] = [
        lambda net, x: net.layers[layer](x.mean((2, 3))),
        lambda net, x: net.layers[layer](F.adaptive_avg_pool2d(x, 1).flatten(1)),
        lambda net, x: net.layers[layer](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        lambda net, x: torch.relu(net.layers[layer](x.mean((2, 3)))),
    ]
    return draw.choice(choices), (at,)


_GROWERS: dict[str, Grower] = {
    "conv": _conv,
    "activate": _activate,
    "binary": _binary,
    "scalar": _scalar,
    "constant": _constant,
    "squeeze_excite": _squeeze_excite,
    "norm": _norm,
    "concat": _concat,
    "pool": _pool,
    "move": _move,
    "head": _head,
}
_WEIGHTED = (
    ["conv"] * 6 + ["binary"] * 4 + ["concat"] * 2 + ["pool"] * 2 + ["move"] * 3
    + ["activate"] * 2 + ["scalar", "constant", "squeeze_excite", "norm", "head"]
)  # fmt: skip
