"""Upsampled forms against running the operations, at borders and odd sizes, in random chains."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuseq.affine.axis import Axis
from fuseq.affine.form import LinForm
from fuseq.affine.polyphase import Form, PolyphaseForm, shuffled, transposed, upsampled
from fuseq.affine.refusal import RefusedError
from tests.core.test_affine_form import evaluated, weights

Function = Callable[[Tensor], Tensor]


def fine(form: Form, x: Tensor) -> Tensor:
    """The formula of the module docstring: phases put in place, then the cut."""
    if isinstance(form, LinForm):
        return evaluated(form, x)
    coarse, (r, c) = evaluated(form.coarse, x), form.phases
    batch, _, rows, columns = coarse.shape
    split = coarse.view(batch, form.channels, r, c, rows, columns).permute(0, 1, 4, 2, 5, 3)
    value = split.reshape(batch, form.channels, r * rows, c * columns)
    return value[:, :, : r * rows - form.cut[0], : c * columns - form.cut[1]]


def step(draw: random.Random, form: Form) -> tuple[Form, Function]:
    """One random operation on two channels, as algebra and as torch runs it."""
    w = weights(2, 2, *(kernel := draw.choice(((1, 1), (2, 2), (3, 3), (1, 3)))))
    match draw.choice(("nearest", "transposed", "convolution", "pad", "sum", "shuffle")):
        case "nearest":
            factors = draw.choice(((2, 2), (3, 2), (1, 2)))
            return upsampled(form, factors), lambda x: F.interpolate(x, scale_factor=factors)
        case "transposed":
            stride, dilation = draw.choice((1, 2, 3)), draw.choice((1, 1, 2))
            groups, bias = draw.choice((1, 2)), weights(2)
            padding, extra = draw.randint(0, 1), draw.randint(0, max(stride, dilation) - 1)
            w = weights(2, 2 // groups, *kernel)
            both = transposed(
                form,
                w,
                bias,
                groups,
                stride=(stride, stride),
                padding=(padding, padding),
                output_padding=(extra, extra),
                dilation=(dilation, dilation),
            )
            return both, lambda x: F.conv_transpose2d(
                x, w, bias, stride, padding, extra, groups, dilation
            )
        case "convolution":
            stride, padding = draw.choice((1, 1, 2, 3, 4)), draw.randint(0, 1)
            rows, columns = (
                Axis.window(k, stride=stride, before=padding, after=padding) for k in kernel
            )
            composed = form.convolved(w, None, 1, (rows, columns))
            return composed, lambda x: F.conv2d(x, w, None, stride, padding)
        case "pad":
            before, after = draw.randint(-2, 2), draw.randint(-2, 2)
            axes = (Axis.window(1, before=before, after=after), Axis.window(1))
            return form.padded(axes, 0.0), lambda x: F.pad(x, (0, 0, before, after))
        case "sum":
            factor = weights(2)
            both = form.scaled(factor)
            added = both.plus(form)  # type: ignore[arg-type]
            return added.shifted(0.0), lambda x: x * factor.view(-1, 1, 1) + x
        case _:
            index = torch.tensor([0, 1] * 4)
            return shuffled(form.channels_taken(index), (2, 2)), lambda x: F.pixel_shuffle(
                x[:, index], 2
            )


@pytest.mark.parametrize("seed", range(60))
def test_random_chains(seed: int) -> None:
    torch.manual_seed(seed)
    draw = random.Random(seed)
    form: Form = LinForm.root(2)
    functions: list[Function] = []
    try:
        for _ in range(draw.choice((1, 2, 3))):
            form, function = step(draw, form)
            functions.append(function)
        form.require_exact()
    except RefusedError:
        return  # how many of them: the next test
    for size in ((3, 4), (4, 3), (7, 5)):
        x = torch.randn(2, 2, *size, dtype=torch.float64)
        expected = x
        try:
            for function in functions:
                expected = function(expected)
                assert expected.numel()
        except (RuntimeError, AssertionError):
            continue
        actual = fine(form, x)
        assert form.shape((2, 2, *size)) == tuple(expected.shape)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)


def test_few_chains_are_refused() -> None:
    refused = 0
    for seed in range(60):
        draw, form = random.Random(seed), LinForm.root(2)
        try:
            for _ in range(draw.choice((1, 2, 3))):
                form, _ = step(draw, form)  # type: ignore[assignment]
            form.require_exact()
        except RefusedError:
            refused += 1
    assert 0 < refused < 20


def test_what_agrees_only_sometimes_is_refused() -> None:
    root = LinForm.root(2)
    twice = upsampled(root, (2, 2))
    with pytest.raises(RefusedError, match="stride-mismatch"):
        twice.plus(root)
    with pytest.raises(RefusedError, match="stride-mismatch"):
        twice.plus(upsampled(root, (3, 3)))
    third = Axis.window(3, stride=3)
    with pytest.raises(RefusedError, match="stride-mismatch"):
        twice.convolved(weights(2, 2, 3, 3), None, 1, (third, third))


def test_equal_phases_are_known() -> None:
    twice = upsampled(LinForm.root(2), (2, 2)).scaled(weights(2)).shifted(1.0)
    pointwise = twice.convolved(weights(2, 2, 1, 1), None, 1, LinForm.root(2).axes)
    assert isinstance(pointwise, PolyphaseForm)
    assert pointwise.repeated
    window = Axis.window(3, before=1, after=1)
    wide = twice.shifted(-1.0).convolved(weights(2, 2, 3, 3), None, 1, (window, window))
    assert isinstance(wide, PolyphaseForm)
    assert wide.repeated is None
