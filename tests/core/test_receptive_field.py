"""Receptive fields: published sizes, and random networks against what a change of input reaches."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fuseq import Program, capture
from fuseq.receptive_field import ReceptiveField, receptive_fields, windows

CHANNELS = 2
WIDTH = 96
MARGIN = 24
"""Input columns at both sides that windows must stay away from: borders cut windows off."""


def field(model: nn.Module, *inputs: Tensor) -> ReceptiveField:
    (found,) = receptive_fields(capture(model, inputs))
    return found


def vgg16() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for count in (2, 2, 3, 3, 3):
        for _ in range(count):
            layers += [nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU()]
            channels = 4
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def alexnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 11, stride=4, padding=2),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(4, 4, 5, padding=2),
        nn.MaxPool2d(3, 2),
        *[nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)],
        nn.MaxPool2d(3, 2),
    )


@pytest.mark.parametrize(("build", "size"), [(vgg16, 212), (alexnet, 195)])
def test_the_sizes_of_the_paper(build: Callable[[], nn.Module], size: int) -> None:
    found = field(build(), torch.rand(1, 3, 96, 128))
    assert found.size == (size, size)
    assert found.stride == (Fraction(32), Fraction(32))
    assert found.whole_image == ()


def test_rows_and_columns_have_their_own() -> None:
    layer = nn.Conv2d(3, 4, (3, 5), stride=(1, 2), padding=(1, 0), dilation=(2, 1))
    found = field(layer, torch.rand(1, 3, 24, 32))
    assert (found.size, found.stride) == ((5, 5), (Fraction(1), Fraction(2)))


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, (1, 5), padding=(0, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def test_an_image_with_its_channels_last() -> None:
    assert field(ChannelsLast(), torch.rand(1, 24, 32, 3)).size == (1, 5)


class Gated(nn.Module):
    """A squeeze-excite gate: the window of the convolutions stays, the gate reads everything."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 3, 3, padding=1), pool

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * torch.sigmoid(self.pool(x))


@pytest.mark.parametrize(
    ("gate", "named"),
    [
        (nn.AdaptiveAvgPool2d(1), "mean"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3), nn.Unflatten(1, (3, 1, 1))), "reshape"),
        (nn.InstanceNorm2d(3), "pool"),
        (nn.Softmax(-1), "softmax"),
    ],
)
def test_what_reads_the_whole_image_is_named(gate: nn.Module, named: str) -> None:
    found = field(Gated(gate), torch.rand(1, 3, 8, 8))
    assert found.size == (3, 3)
    (node,) = found.whole_image
    assert node.startswith(named)


def test_a_classifier_has_no_window() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = field(model, torch.rand(1, 3, 16, 16))
    assert (found.size, found.stride) == ((None, None), (None, None))
    assert found.whole_image == ("mean",)


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        mixed = torch.softmax(tokens.transpose(1, 2) @ tokens, -1)
        return (tokens @ mixed).view(1, 3, 8, 8)


def test_attention_reads_the_whole_image() -> None:
    found = field(Attention(), torch.rand(1, 3, 8, 8))
    assert found.size == (None, None)
    assert found.whole_image == ("reshape",)


class Twice(nn.Module):
    """Two inputs, two outputs; the second input reaches the second output alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 7, padding=3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.first(self.second(y) + x)


def test_each_output_in_each_input() -> None:
    program = capture(Twice(), (torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)))
    sizes = {(f.output, f.input): f.size for f in receptive_fields(program)}
    assert sizes == {
        ("output_0", "x"): (3, 3),
        ("output_1", "x"): (3, 3),
        ("output_1", "y"): (9, 9),
    }


class Pointwise(nn.Module):
    """Ops outside the vocabulary that torch itself says are pointwise, or reduce channels."""

    def forward(self, x: Tensor) -> Tensor:
        strongest = x.amax(1, keepdim=True)
        return F.softplus(F.elu(x)) * strongest.exp()


@pytest.mark.parametrize("front_end", ["fx", "export"])
def test_pointwise_ops_outside_the_vocabulary(front_end: str) -> None:
    program = capture(Pointwise(), torch.rand(1, 3, 16, 16), front_end=front_end)
    (found,) = receptive_fields(program)
    assert (found.size, found.whole_image) == ((1, 1), ())


def test_an_op_nobody_knows_reads_everything() -> None:
    class Rolled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.roll(x, 1, 3)

    assert field(Rolled(), torch.rand(1, 3, 16, 16)).whole_image == ("roll",)


def test_the_largest_of_neighbours_counts() -> None:
    # Behind the resize, even positions read one column of the pool, odd ones read two.
    model = nn.Sequential(nn.AvgPool2d(4), nn.Upsample(scale_factor=2), nn.Conv2d(3, 3, 2))
    found = field(model, torch.rand(1, 3, 32, 32))
    assert (found.size, found.stride) == ((8, 8), (Fraction(2), Fraction(2)))


# --- random networks: a change of one column reaches exactly the windows that hold it -----------


class Sum(nn.Module):
    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = [branch(x) for branch in self.branches]
        for other in others:
            first = first + other
        return first


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def conv(kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> nn.Module:
    along = {"stride": (1, stride), "padding": (0, padding), "dilation": (1, dilation)}
    return nn.Conv2d(CHANNELS, CHANNELS, (1, kernel), bias=False, **along)  # type: ignore[arg-type]


@st.composite
def same_width(draw: st.DrawFn) -> nn.Module:
    kernel, dilation = draw(st.sampled_from((1, 3, 5))), draw(st.integers(1, 3))
    span = dilation * (kernel - 1)
    pool = draw(st.sampled_from((nn.AvgPool2d, nn.MaxPool2d)))
    return draw(
        st.sampled_from(
            (
                nn.Identity(),
                nn.ReLU(),
                conv(kernel, 1, span // 2, dilation),
                pool((1, 3), (1, 1), (0, 1)),
            )
        )
    )


@st.composite
def layer(draw: st.DrawFn, width: int) -> nn.Module:
    """A layer that a map of this many columns can take."""
    kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    dilation, padding = draw(st.integers(1, 2)), draw(st.integers(0, 2))
    crop = draw(st.integers(0, 3))
    mode = draw(st.sampled_from(("nearest", "bilinear", "corners")))
    corners = {"align_corners": mode == "corners"} if mode != "nearest" else {}
    scale = draw(st.sampled_from((1.5, 2, 3)))
    options: list[nn.Module] = [
        conv(kernel, stride, padding, dilation),
        Sum(draw(same_width()), draw(same_width())),
        nn.MaxPool2d((1, 3), (1, stride), (0, 1)),
        nn.AvgPool2d((1, kernel), (1, stride)),
        Call(lambda x: x[..., crop : width - 1 : stride]),
        Call(lambda x: F.pad(x, (padding, crop), value=1.0)),
    ]
    if width < 200:
        overlapping = (1, kernel + stride - 1)
        up = nn.ConvTranspose2d(CHANNELS, CHANNELS, overlapping, (1, stride), bias=False)
        options += [
            up,
            nn.Upsample(
                scale_factor=(1, scale), mode=mode.replace("corners", "bilinear"), **corners
            ),
            nn.Sequential(nn.Conv2d(CHANNELS, 4 * CHANNELS, 1, bias=False), nn.PixelShuffle(2)),
        ]
    if width % 2 == 0:
        pool = nn.Sequential(
            nn.AvgPool2d((1, 2)), draw(same_width()), nn.Upsample(scale_factor=(1, 2))
        )
        options.append(Sum(pool, draw(same_width())))
    return draw(st.sampled_from(options))


@st.composite
def network(draw: st.DrawFn) -> nn.Module:
    layers: list[nn.Module] = []
    x = torch.empty(1, CHANNELS, 2, WIDTH)
    while len(layers) < draw(st.integers(1, 5)):
        made = draw(layer(x.shape[-1]))
        layers.append(made)
        x = made(x)
        if x.shape[-1] < 24:
            break
    return positive(nn.Sequential(*layers))


def positive(model: nn.Module) -> nn.Module:
    """With weights that cannot cancel; every path from an input to an output then shows."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return model.double().requires_grad_(False)


def reached(program: Program) -> Tensor:
    """Boolean `(input columns, output columns)`: whether a change of the one changes the other."""
    plain = torch.ones(1, CHANNELS, 2, WIDTH, dtype=torch.float64)
    changed = plain.repeat(WIDTH, 1, 1, 1)
    changed[range(WIDTH), :, :, range(WIDTH)] += 1000.0
    before, after = program.module(plain), program.module(changed)
    return ((after - before).abs() > 1e-10 * before.abs()).flatten(1, 2).any(1)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(network())
def test_windows_hold_what_a_change_reaches(model: nn.Module) -> None:
    example = torch.ones(1, CHANNELS, 2, WIDTH, dtype=torch.float64)
    program = capture(model, example, front_end="fx")
    (image,), (output,) = program.inputs(), program.outputs()
    seen = reached(program)
    found = windows(program, output, image, 3, np.arange(seen.shape[1]))
    assert found is not None
    (whole,) = receptive_fields(program)
    largest = 0
    for column, (first, last) in enumerate(zip(*found, strict=True)):
        changes = seen[:, column].nonzero().flatten().tolist()
        if first > last:
            assert changes == []
        elif MARGIN <= first and last < WIDTH - MARGIN:
            assert (changes[0], changes[-1]) == (first, last)
            largest = max(largest, len(range(first, last + 1)))
    assert whole.size[1] is not None
    assert whole.size[1] >= largest
    assert whole.whole_image == ()
