"""Each operation of the algebra against running the operation, borders and tiny maps included."""

import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fuseq.affine.axis import Axis
from fuseq.affine.form import LinForm
from fuseq.affine.kernel import group_start
from fuseq.affine.refusal import RefusedError

SIZES = [(1, 1), (1, 4), (2, 3), (5, 7), (8, 6), (9, 12)]


def evaluated(form: LinForm, x: Tensor) -> Tensor:
    """The formula of the module docstring, position by position."""
    kernel = form.dense(torch.zeros(form.channels, dtype=torch.int64), form.in_channels)
    height, width = (axis.size(n) for axis, n in zip(form.axes, x.shape[2:], strict=True))
    out = torch.zeros(len(x), form.channels, height, width, dtype=torch.float64)
    out += form.bias.view(-1, 1, 1)
    vertical, horizontal = form.axes
    for i in range(height):
        for j in range(width):
            for a, r in enumerate(vertical.taps):
                for b, q in enumerate(horizontal.taps):
                    row, column = vertical.stride * i + r, horizontal.stride * j + q
                    if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                        out[:, :, i, j] += x[:, :, row, column] @ kernel[:, :, a, b].T
    return out


def conv(form: LinForm, weight: Tensor, bias: Tensor | None = None, **options: int) -> LinForm:
    groups = options.pop("groups", 1)
    padding = options.pop("padding", 0)
    axes = [
        Axis.window(size, before=padding, after=padding, **options) for size in weight.shape[2:]
    ]
    return form.convolved(weight, bias, groups, (axes[0], axes[1]))


def agrees(
    form: LinForm,
    function: Callable[[Tensor], Tensor],
    channels: int,
    sizes: list[tuple[int, int]] = SIZES,
) -> None:
    compared = 0
    for height, width in sizes:
        x = torch.randn(2, channels, height, width, dtype=torch.float64)
        try:
            expected = function(x)
        except RuntimeError:
            continue
        if 0 in expected.shape:
            continue
        actual = evaluated(form, x)
        assert actual.shape == expected.shape
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
        compared += 1
    assert compared


def weights(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolution(stride: int, padding: int, dilation: int, groups: int) -> None:
    w, b = weights(8, 4 // groups, 3, 2), weights(8)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    form = conv(LinForm.root(4), w, b, **options)
    agrees(form, lambda x: F.conv2d(x, w, b, **options), 4)
    assert form.groups() == groups


@pytest.mark.parametrize("first_groups", [1, 2, 4, 8])
@pytest.mark.parametrize("second_groups", [1, 2, 4, 8])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_sequence_has_the_gcd_of_the_groups(
    first_groups: int, second_groups: int, strides: tuple[int, int]
) -> None:
    w1, b1 = weights(8, 8 // first_groups, 3, 3), weights(8)
    w2, b2 = weights(8, 8 // second_groups, 2, 3), weights(8)
    first = {"stride": strides[0], "groups": first_groups, "padding": 1}
    second = {"stride": strides[1], "groups": second_groups, "dilation": 2}
    form = conv(conv(LinForm.root(8), w1, b1, **first), w2, b2, **second)
    agrees(
        form,
        lambda x: F.conv2d(F.conv2d(x, w1, b1, **first), w2, b2, **second),
        8,
        [(12, 9), (16, 19)],
    )
    assert form.groups() == min(first_groups, second_groups)


def test_one_by_one_without_bias_before_a_padded_window() -> None:
    w1, w2 = weights(6, 3, 1, 1), weights(4, 6, 3, 3)
    form = conv(conv(LinForm.root(3), w1), w2, padding=1)
    agrees(form, lambda x: F.conv2d(F.conv2d(x, w1), w2, padding=1), 3)
    assert form.rules == {"ring rule", "bias rule"}


def test_strided_one_by_one_before_a_padded_window() -> None:
    w1, w2 = weights(6, 3, 1, 1), weights(4, 6, 3, 3)
    form = conv(conv(LinForm.root(3), w1, stride=2), w2, padding=1)
    agrees(form, lambda x: F.conv2d(F.conv2d(x, w1, stride=2), w2, padding=1), 3)


def test_channelwise_scale_and_shift() -> None:
    w, scale, shift = weights(4, 3, 3, 3), weights(4), weights(4)
    form = conv(LinForm.root(3), w, padding=1).scaled(scale).shifted(shift).scaled(-2.0)
    agrees(
        form,
        lambda x: -2 * (F.conv2d(x, w, padding=1) * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)),
        3,
    )


def test_sum_unites_taps_and_groups() -> None:
    w1, w2 = weights(4, 2, 3, 1), weights(4, 1, 1, 5)
    a = conv(LinForm.root(4), w1, padding=0, groups=2)
    a = a.padded((Axis.window(1), Axis.window(1)), 0.0)
    vertical = LinForm.root(4).padded((Axis.window(1, before=1, after=1), Axis.window(1)), 0.0)
    horizontal = LinForm.root(4).padded((Axis.window(1), Axis.window(1, before=2, after=2)), 0.0)
    form = conv(vertical, w1, groups=2).plus(conv(horizontal, w2, groups=4))
    agrees(
        form,
        lambda x: (
            F.conv2d(x, w1, padding=(1, 0), groups=2) + F.conv2d(x, w2, padding=(0, 2), groups=4)
        ),
        4,
    )
    assert form.groups() == 2
    assert [axis.taps for axis in form.axes] == [(-1, 0, 1), (-2, -1, 0, 1, 2)]


def test_crop_and_stride() -> None:
    w = weights(4, 3, 3, 3)
    crop = (Axis.window(1, stride=2, before=-1, after=-2), Axis.window(1, before=-2))
    form = conv(LinForm.root(3), w, padding=1).padded(crop, 0.0)
    agrees(form, lambda x: F.conv2d(x, w, padding=1)[:, :, 1:-2:2, 2:], 3)


def test_concatenation_and_channel_slices_keep_groups_apart() -> None:
    w1, w2 = weights(2, 2, 3, 3), weights(4, 2, 1, 1)
    root = LinForm.root(4)
    a = conv(root.channels_taken(torch.arange(0, 2)), w1, padding=1)
    b = conv(root.channels_taken(torch.arange(2, 4)), w2)
    form = LinForm.concatenated([a, b, b.channels_taken(torch.tensor([3, 0]))])
    agrees(
        form,
        lambda x: torch.cat(
            [
                F.conv2d(x[:, :2], w1, padding=1),
                F.conv2d(x[:, 2:], w2),
                F.conv2d(x[:, 2:], w2)[:, [3, 0]],
            ],
            1,
        ),
        4,
    )
    same = LinForm.concatenated([a, conv(root.channels_taken(torch.arange(2, 4)), w1, padding=1)])
    assert same.groups() == 2


def test_space_to_depth_is_a_depthwise_convolution() -> None:
    one_hot = torch.eye(4, dtype=torch.float64).view(4, 1, 2, 2).repeat(3, 1, 1, 1)
    form = conv(LinForm.root(3), one_hot, stride=2, groups=3)
    agrees(form, lambda x: F.pixel_unshuffle(x, 2), 3, [(2, 2), (4, 6), (8, 2)])


def test_bias_written_over_the_padding() -> None:
    w1, b1, w2 = weights(4, 3, 1, 1), weights(4), weights(5, 4, 3, 3)
    frame = (Axis.window(1, before=1, after=1), Axis.window(1, before=1, after=1))
    form = conv(LinForm.root(3), w1, b1).padded(frame, 0.0, framed=True)
    for dim, start, end in ((2, 0, 1), (2, -1, None), (3, 0, 1)):
        form = form.overwritten(dim, start, end, b1, 0.0)
        assert form.border
    form = form.overwritten(3, -1, None, b1, 0.0)

    def padded_with_bias(x: Tensor) -> Tensor:
        y = F.pad(F.conv2d(x, w1), (1, 1, 1, 1)) + b1.view(-1, 1, 1)
        return F.conv2d(y, w2)

    agrees(conv(form, w2), padded_with_bias, 3)


def test_padding_value_may_be_the_bias() -> None:
    w1, w2 = weights(4, 3, 1, 1), weights(5, 4, 3, 3)
    frame = (Axis.window(1, before=1, after=1), Axis.window(1, before=1, after=1))
    form = conv(
        conv(LinForm.root(3), w1, torch.full((4,), 0.3, dtype=torch.float64)).padded(frame, 0.3), w2
    )
    agrees(form, lambda x: F.conv2d(F.pad(F.conv2d(x, w1) + 0.3, (1, 1, 1, 1), value=0.3), w2), 3)


@pytest.mark.parametrize("seed", range(25))
def test_the_formula_holds_inside_the_margin(seed: int) -> None:
    """Windows that break a rule, at random; what the margin leaves over must be right."""
    draw = random.Random(seed)
    form, steps = LinForm.root(2), []
    for _ in range(3):
        kernel, stride = draw.choice((1, 2, 3)), draw.choice((1, 1, 2))
        padding = draw.randint(0, 2)
        crop = draw.choice((0, 0, 1, 2))
        w, b = weights(2, 2, kernel, kernel), weights(2) * draw.choice((0, 1))
        form = conv(form, w, b, stride=stride, padding=padding)
        form = form.padded((Axis.window(1, before=-crop), Axis.window(1, after=-crop)), 0.0)
        steps.append((w, b, stride, padding, crop))

    def function(x: Tensor) -> Tensor:
        for w, b, stride, padding, crop in steps:
            x = F.conv2d(x, w, b, stride, padding)
            x = x[:, :, crop:, : x.shape[3] - crop]
        return x

    top, bottom, left, right = form.margin.widths if form.margin else (0, 0, 0, 0)
    inside = form.padded(
        (Axis.window(1, before=-top, after=-bottom), Axis.window(1, before=-left, after=-right)), 0
    )
    inside.require_exact()
    sizes = [(30, 33), (31, 32), (32, 31), (33, 30)]
    agrees(
        inside,
        lambda x: (y := function(x))[:, :, top : y.shape[2] - bottom, left : y.shape[3] - right],
        2,
        sizes,
    )


def test_a_crop_mends_a_failed_rule() -> None:
    form = LinForm.root(2)
    w = weights(2, 2, 3, 3)
    twice = conv(conv(form, w, weights(2), padding=1), w, padding=1)
    assert refusal(lambda: twice) == "ring"
    crop = Axis.window(1, before=-1, after=-1)
    assert refusal(lambda: twice.padded((crop, Axis.window(1)), 0.0)) == "ring"
    twice.padded((crop, crop), 0.0).require_exact()


def refusal(build: Callable[[], LinForm]) -> str:
    with pytest.raises(RefusedError) as caught:
        build().require_exact()
    return caught.value.code


def test_refusals() -> None:
    root, w = LinForm.root(4), weights(4, 4, 3, 3)
    one = weights(4, 4, 1, 1)
    frame = (Axis.window(1, before=1, after=1), Axis.window(1, before=1, after=1))
    padded = conv(root, w, padding=1)
    assert refusal(lambda: conv(padded, w, padding=1)) == "ring"
    assert refusal(lambda: conv(conv(root, one, weights(4)), w, padding=1)) == "border-bias"
    assert refusal(lambda: conv(root, one, weights(4)).padded(frame, 0.5)) == "border-bias"
    assert refusal(lambda: padded.plus(conv(root, w, padding=1, stride=2))) == "stride-mismatch"
    assert refusal(lambda: padded.plus(root.padded(frame, 0.0))) == "size-mismatch"
    assert refusal(lambda: root.plus(conv(root, weights(1, 4, 1, 1)))) == "layout"
    framed = conv(root, one, weights(4)).padded(frame, 0.0, framed=True)
    assert refusal(lambda: framed.scaled(2.0)) == "border-bias"
    assert refusal(lambda: framed.overwritten(2, 0, 2, weights(4), 0.0)) == "layout"
    cropped = root.padded((Axis.window(1, before=-1), Axis.window(1)), 0.0)
    assert refusal(lambda: cropped.padded(frame, 0.0)) == "ring"


def test_captured_size_admits_what_holds_there_only() -> None:
    w, pool = weights(2, 2, 3, 3), torch.full((2, 1, 2, 2), 0.25, dtype=torch.float64)

    def branches(root: LinForm) -> LinForm:
        return conv(root, w, stride=2, padding=1).plus(conv(root, pool, stride=2, groups=2))

    assert refusal(lambda: branches(LinForm.root(2))) == "size-mismatch"
    form = branches(LinForm.root(2, (6, 8)))
    assert "captured size" in form.rules
    agrees(form, lambda x: F.conv2d(x, w, stride=2, padding=1) + F.avg_pool2d(x, 2), 2, [(6, 8)])


def test_structure_is_known_without_a_kernel() -> None:
    def never() -> Tensor:
        raise AssertionError("a kernel was built")

    root = LinForm.root(4)
    lazy = LinForm(4, root.axes, root.low, root.high, root.bias, never)
    form = conv(conv(lazy, weights(8, 4, 3, 3)), weights(8, 1, 3, 3), groups=8).scaled(2.0)
    assert (form.groups(), form.axes[0].taps) == (1, (0, 1, 2, 3, 4))


def test_group_start() -> None:
    assert group_start(6, 4, 2).tolist() == [0, 0, 3, 3]
