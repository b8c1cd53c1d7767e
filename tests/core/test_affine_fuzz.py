"""Random affine networks: whatever fuses must equal the unfused network at every size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fuseq import Program, capture, ops
from fuseq.affine.fuse import fuse
from fuseq.affine.price import CostModel
from fuseq.affine.prove import Certificate

CHANNELS = 4
SIZES = [(1, 1), (2, 5), (4, 3), (7, 7), (12, 8), (13, 10)]
EAGER = CostModel(element=0.0, operation=1e12)
"""Fuses whatever the algebra allows."""


class Step(nn.Module):
    """A function and the layers it calls."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


class Crop(nn.Module):
    def __init__(self, start: int, end: int, step: int) -> None:
        super().__init__()
        self.rows, self.columns = slice(start, end, step), slice(start, None, step)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, self.rows, self.columns]


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(CHANNELS, 1, 1))
        self.beta = nn.Parameter(torch.randn(1, CHANNELS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (1 - self.gamma * x) / 3 - self.beta


def conv(kernel: int, **options: int | bool) -> nn.Module:
    return nn.Conv2d(CHANNELS, CHANNELS, kernel, **options)  # type: ignore[arg-type]


@st.composite
def same_size(draw: st.DrawFn, depth: int) -> nn.Module:
    """A map of the input's size."""
    kind = draw(st.sampled_from(SAME if depth else SAME[:7]))
    groups = draw(st.sampled_from((1, 1, 2, 4)))
    bias = draw(st.booleans())
    match kind:
        case "1x1":
            return conv(1, groups=groups, bias=bias)
        case "window":
            kernel, dilation = draw(st.sampled_from(((3, 1), (3, 2), (5, 1))))
            padding = kernel // 2 * dilation
            return conv(kernel, padding=padding, dilation=dilation, groups=groups, bias=bias)
        case "asymmetric":
            before = draw(st.sampled_from((0, 1)))
            window = conv(2, groups=groups, bias=bias)
            amounts = (before, 1 - before, 1 - before, before)
            return Step(lambda x, layer: layer(F.pad(x, amounts)), window)
        case "norm":
            return nn.BatchNorm2d(CHANNELS)
        case "scale":
            return Scale()
        case "pool":
            return nn.AvgPool2d(3, 1, 1, count_include_pad=draw(st.booleans()))
        case "pad and crop":
            return Step(lambda x: F.pad(x, (1, 1, 2, 0))[:, :, 1:-1, 2:])
        case "pad first":
            inner = draw(same_size(0))
            return Step(
                lambda x, a, b: b(a(F.pad(x, (1, 1, 1, 1))))[:, :, 1:-1, 1:-1], inner, conv(1)
            )
        case "sum" | "difference":
            sign = 1.0 if kind == "sum" else -1.0
            branches = [draw(same_size(depth - 1)) for _ in range(draw(st.integers(1, 3)))]
            return Step(
                lambda x, *layers: sum((layer(x) for layer in layers), start=sign * x), *branches
            )
        case "halves":
            a, b = nn.Conv2d(2, 2, 3, padding=1, bias=bias), nn.Conv2d(2, 2, 1)
            return Step(lambda x, a, b: torch.cat([a(x[:, :2]), b(x[:, 2:])], 1), a, b)
        case _:
            return nn.Sequential(draw(same_size(depth - 1)), draw(same_size(depth - 1)))


SAME = [
    "1x1", "window", "asymmetric", "norm", "scale", "pool", "pad and crop",
    "pad first", "sum", "sum", "difference", "halves", "sequence", "sequence",
]  # fmt: skip


@st.composite
def network(draw: st.DrawFn) -> nn.Module:
    torch.manual_seed(draw(st.integers(0, 2**16)))
    resize: list[nn.Module] = [
        nn.Identity(),
        conv(3, stride=2, padding=1),
        conv(3, padding=0),
        conv(2, stride=2),
        nn.AvgPool2d(2),
        Crop(1, -2, draw(st.sampled_from((1, 2)))),
        Step(lambda x: F.pad(x, (2, 1, 0, 3))),
    ]
    first, second = (draw(st.sampled_from(resize)) for _ in range(2))
    parts = [draw(same_size(2)), first, draw(same_size(1))]
    if second is not first:
        parts.append(second)
    model = nn.Sequential(*parts).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.requires_grad_(False)


def fused(program: Program, cost: CostModel) -> tuple[Program, tuple[Certificate, ...]]:
    """The fused clone and its certificates; the float64 check must have had nothing to refuse."""
    result = program.clone()
    outcome = fuse(result, cost)
    assert all(refusal.code != "proof" for refusal in outcome.refusals)
    return result, outcome.certificates


def outputs(model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs of several sizes and what the model makes of them, where it takes them.

    A slice of a map that is too small is empty, not an error; later padding would hide that.
    """
    empty: list[bool] = []
    for module in model.modules():
        module.register_forward_hook(lambda _m, _x, y: empty.append(not y.numel()))
    for size in SIZES:
        x = torch.randn(2, CHANNELS, *size, dtype=torch.float64)
        empty.clear()
        try:
            y = model(x)
        except RuntimeError:
            continue
        if not any(empty):
            yield x, y


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(network(), st.sampled_from((EAGER, CostModel())))
def test_fused_networks_are_the_unfused_ones_at_every_size(
    model: nn.Module, cost: CostModel
) -> None:
    example = torch.randn(1, CHANNELS, 12, 9, dtype=torch.float64)
    program = capture(model, example, front_end="fx")
    result, certificates = fused(program, cost)
    smallest = largest_crop(result)
    for x, expected in outputs(model):
        if min(x.shape[2:]) < smallest:
            continue  # torch refuses to crop more than there is
        actual = result.module(x)
        assert actual.shape == expected.shape
        scale = float(expected.abs().max().clamp_min(1e-30))
        assert float((actual - expected).abs().max()) <= 1e-11 * scale
    assert all(c.validity == "all sizes" and c.residual <= 1e-11 for c in certificates)
    assert not fused(result, cost)[1]


def largest_crop(program: Program) -> int:
    pads = [node for node in program.graph.nodes if ops.name_of(program, node) == "pad"]
    amounts = [amount for node in pads for amount in node.kwargs["pad"]]
    return max((-amount for amount in amounts), default=0)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(network())
def test_impulses_find_the_kernel_that_the_algebra_derives(model: nn.Module) -> None:
    example = torch.randn(1, CHANNELS, 12, 9, dtype=torch.float64)
    result, _ = fused(capture(model, example, front_end="fx"), EAGER)
    nodes = [n for n in result.graph.nodes if n.op not in ("placeholder", "output")]
    assume([ops.name_of(result, node) for node in nodes] == ["conv2d"])
    layer = result.get(nodes[0])
    assert isinstance(layer, nn.Conv2d)
    probed, bias = by_impulses(model, layer)
    dense = torch.zeros_like(probed)
    per_group, outputs_per_group = layer.weight.shape[1], CHANNELS // layer.groups
    for o in range(CHANNELS):
        first = o // outputs_per_group * per_group
        dense[o, first : first + per_group] = layer.weight[o]
    torch.testing.assert_close(dense, probed, rtol=0, atol=1e-10)
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias, bias, rtol=0, atol=1e-10)


def by_impulses(model: nn.Module, layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Dense kernel and bias of an affine model, entry by entry, at a convolution's geometry."""
    height, width = layer.kernel_size
    geometry = zip(layer.stride, layer.kernel_size, layer.dilation, strict=True)
    size = [2 * stride * kernel * dilation + 8 for stride, kernel, dilation in geometry]
    silence = model(torch.zeros(1, CHANNELS, *size, dtype=torch.float64))
    row, column = silence.shape[2] // 2, silence.shape[3] // 2
    kernel = torch.zeros(CHANNELS, CHANNELS, height, width, dtype=torch.float64)
    for u in range(height):
        for v in range(width):
            x = torch.zeros(CHANNELS, CHANNELS, *size, dtype=torch.float64)
            i = layer.stride[0] * row - int(layer.padding[0]) + layer.dilation[0] * u
            j = layer.stride[1] * column - int(layer.padding[1]) + layer.dilation[1] * v
            x[range(CHANNELS), range(CHANNELS), i, j] = 1
            kernel[:, :, u, v] = (model(x) - silence)[:, :, row, column].T
    return kernel, silence[0, :, row, column]


def test_most_random_networks_fuse_to_one_convolution() -> None:
    collapsed = []

    @settings(
        max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(network())
    def run(model: nn.Module) -> None:
        example = torch.randn(1, CHANNELS, 12, 9, dtype=torch.float64)
        program = capture(model, example, front_end="fx")
        result, certificates = fused(program, EAGER)
        if ops.count(program, "conv2d"):
            collapsed.append(bool(certificates) and ops.count(result, "conv2d") == 1)

    run()
    assert sum(collapsed) >= 0.3 * len(collapsed) > 10
