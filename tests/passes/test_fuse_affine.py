"""Re-parameterizable blocks fuse; near misses are refused with the right reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuseq import FuseqError, Program, capture, ops, rewrite, verify
from fuseq.affine.prove import Certificate
from fuseq.affine.refusal import Refusal
from fuseq.passes.fuse_affine import FuseAffine
from fuseq.text import to_text


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Block(nn.Module):
    """Layers and the function that calls them."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


def with_norm(inputs: int, outputs: int, kernel: int, **options: int) -> nn.Sequential:
    dilation = options.get("dilation", 1)
    options.setdefault("padding", kernel // 2 * dilation)
    layer = nn.Conv2d(inputs, outputs, kernel, bias=False, **options)  # type: ignore[arg-type]
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


def trained(model: nn.Module) -> nn.Module:
    """A model whose statistics are not the defaults, so that a dropped one shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.eval().requires_grad_(False)


def fused(
    model: nn.Module, *shape: int, step: FuseAffine | None = None, front_end: str = "fx"
) -> tuple[Program, Program]:
    """A captured program and what the pass makes of it, equal in float64 and idempotent."""
    before = capture(trained(model), torch.randn(*shape), front_end=front_end)
    step = step or FuseAffine()
    after = rewrite.apply(step, before)
    assert rewrite.apply(step, after, prove=False).history[-1].rewrites == 0
    exact = rewrite.apply(step, before.twin(torch.float64), prove=False)
    assert_same(before.twin(torch.float64), exact)
    return before, after


def assert_same(before: Program, after: Program) -> None:
    assert verify.distance(before, after, verify.probe_inputs(before)) <= 1e-12


def layers(program: Program) -> tuple[int, int]:
    return ops.count(program, "conv2d"), ops.count(program, "batch_norm")


def reasons(program: Program) -> set[str]:
    return {refusal.code for refusal in program.details(Refusal)}


# --- published blocks ---------------------------------------------------------------------------


def mobileone(channels: int, groups: int) -> nn.Module:
    return Block(
        lambda x, *b: torch.relu(sum((f(x) for f in b[1:]), start=b[0](x))),
        nn.BatchNorm2d(channels),
        *(with_norm(channels, channels, 3, groups=groups) for _ in range(4)),
        with_norm(channels, channels, 1, groups=groups),
    )


def repvgg(stride: int) -> nn.Module:
    return Block(
        lambda x, a, b: torch.relu(a(x) + b(x)),
        with_norm(4, 6, 3, stride=stride),
        with_norm(4, 6, 1, stride=stride, padding=0),
    )


def qarepvgg() -> nn.Module:
    return Block(
        lambda x, a, b, pool, norm: torch.relu(norm(a(x) + b(x) + x + pool(x))),
        with_norm(4, 4, 3),
        nn.Conv2d(4, 4, 1, bias=False),
        nn.AvgPool2d(3, 1, 1),
        nn.BatchNorm2d(4),
    )


def acnet(padding: int) -> nn.Module:
    """Cross-shaped branches; without padding they read a cropped map."""
    crop = padding - 1
    rows = nn.Conv2d(4, 4, (3, 1), padding=(padding, 0), bias=False)
    columns = nn.Conv2d(4, 4, (1, 3), padding=(0, padding), bias=False)
    return Block(
        lambda x, square, a, b, norm_a, norm_b: torch.relu(
            square(x)
            + norm_a(a(F.pad(x, (crop, crop, 0, 0))))
            + norm_b(b(F.pad(x, (0, 0, crop, crop))))
        ),
        with_norm(4, 4, 3, padding=padding),
        rows,
        columns,
        nn.BatchNorm2d(4),
        nn.BatchNorm2d(4),
    )


class NormAndPad(nn.Module):
    """Batch norm, then padding with what the batch norm makes of zero (DBB)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        value = (norm.bias - norm.running_mean * scale).view(1, -1, 1, 1)
        y = F.pad(norm(x), (1, 1, 1, 1))
        y[:, :, 0:1, :] = value
        y[:, :, -1:, :] = value
        y[:, :, :, 0:1] = value
        y[:, :, :, -1:] = value
        return y


def diverse_branch() -> nn.Module:
    return Block(
        lambda x, a, b, c, d: torch.relu(a(x) + b(x) + c(x) + d(x)),
        with_norm(4, 4, 3),
        with_norm(4, 4, 1),
        nn.Sequential(
            nn.Conv2d(4, 4, 1, bias=False), NormAndPad(4), nn.AvgPool2d(3, 1), nn.BatchNorm2d(4)
        ),
        nn.Sequential(
            nn.Conv2d(4, 6, 1, bias=False), NormAndPad(6), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)
        ),
    )


class EdgeBranch(nn.Module):
    """1x1, padding with its bias, then a scaled fixed mask (ECB)."""

    mask: Tensor

    def __init__(self, mask: list[list[float]]) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1)
        self.scale, self.bias = nn.Parameter(torch.randn(4, 1, 1, 1)), nn.Parameter(torch.randn(4))
        self.register_buffer("mask", torch.tensor(mask).repeat(4, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        assert self.first.bias is not None
        y = F.pad(self.first(x), (1, 1, 1, 1))
        value = self.first.bias.view(1, -1, 1, 1)
        y[:, :, 0:1, :] = value
        y[:, :, -1:, :] = value
        y[:, :, :, 0:1] = value
        y[:, :, :, -1:] = value
        return F.conv2d(y, self.scale * self.mask, self.bias, groups=4)


def edge_oriented() -> nn.Module:
    sobel = [[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]
    laplacian = [[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]
    return Block(
        lambda x, a, b, c: torch.relu(x + a(x) + b(x) + c(x)),
        nn.Conv2d(4, 4, 3, padding=1),
        EdgeBranch(sobel),
        EdgeBranch(laplacian),
    )


class RepMixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.one = with_norm(4, 4, 3, groups=4), with_norm(4, 4, 1, groups=4)
        self.inner, self.outer = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.gamma = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(x) + self.one(x) + self.inner(x)
        result: Tensor = x + self.gamma * (mixed - self.outer(x))
        return result


def replknet() -> nn.Module:
    return Block(
        lambda x, *b: torch.relu(sum((f(x) for f in b[1:]), start=b[0](x))),
        with_norm(4, 4, 13, groups=4),
        with_norm(4, 4, 5, groups=4),
        with_norm(4, 4, 5, groups=4, dilation=2),
        with_norm(4, 4, 3, groups=4, dilation=3),
    )


def padded_first() -> nn.Module:
    """Zero padding before the expanding 1x1 and its bias (SPAN's Conv3XC)."""
    return Block(
        lambda x, skip, a, b, c: F.leaky_relu(c(b(a(F.pad(x, (1, 1, 1, 1))))) + skip(x), 0.05),
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 8, 1),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 4, 1),
    )


@pytest.mark.parametrize(
    ("block", "kernel", "groups"),
    [
        pytest.param(lambda: mobileone(4, 1), 3, 1, id="mobileone"),
        pytest.param(lambda: mobileone(4, 4), 3, 4, id="mobileone-depthwise"),
        pytest.param(lambda: mobileone(8, 4), 3, 4, id="mobileone-grouped"),
        pytest.param(lambda: repvgg(1), 3, 1, id="repvgg"),
        pytest.param(lambda: repvgg(2), 3, 1, id="repvgg-stride"),
        pytest.param(qarepvgg, 3, 1, id="qarepvgg"),
        pytest.param(lambda: acnet(1), 3, 1, id="acnet"),
        pytest.param(lambda: acnet(0), 3, 1, id="acnet-crop"),
        pytest.param(RepMixer, 3, 4, id="repmixer"),
        pytest.param(replknet, 13, 4, id="replknet"),
        pytest.param(padded_first, 3, 1, id="conv3xc"),
    ],
)
def test_a_block_becomes_one_convolution(
    block: Callable[[], nn.Module], kernel: int, groups: int
) -> None:
    model = block()
    channels = next(p for p in model.parameters() if p.dim() == 4).shape[1] * (
        groups if groups > 1 else 1
    )
    _, after = fused(model, 1, channels, 14, 11)
    assert layers(after) == (1, 0)
    layer = next(m for m in after.module.modules() if isinstance(m, nn.Conv2d))
    assert (layer.kernel_size, layer.groups) == ((kernel, kernel), groups)
    (certificate,) = after.details(Certificate)
    assert certificate.residual <= 1e-12
    assert certificate.validity == "all sizes"
    assert certificate.macs_after <= certificate.macs_before


@pytest.mark.parametrize("block", [diverse_branch, edge_oriented])
def test_padding_overwritten_with_the_bias_is_exact(block: Callable[[], nn.Module]) -> None:
    before = capture(trained(block()).double(), torch.randn(1, 4, 12, 9).double())
    after = rewrite.apply(FuseAffine(), before)
    assert layers(after) == (1, 0)
    assert_same(before, after)
    (certificate,) = after.details(Certificate)
    assert certificate.rules == ("bias rule", "ring rule")
    assert certificate.residual <= 1e-12


def test_a_float32_constant_over_the_padding_is_exact_to_its_rounding() -> None:
    after = rewrite.apply(
        FuseAffine(), capture(trained(diverse_branch()), torch.randn(1, 4, 12, 9))
    )
    assert layers(after) == (1, 0)
    (certificate,) = after.details(Certificate)
    assert certificate.residual <= 8 * torch.finfo(torch.float32).eps


def test_grouped_convolution_with_identity_keeps_groups() -> None:
    model = Block(lambda x, a, n: a(x) + n(x), with_norm(8, 8, 3, groups=2), nn.BatchNorm2d(8))
    _, after = fused(model, 1, 8, 9, 9)
    layer = next(m for m in after.module.modules() if isinstance(m, nn.Conv2d))
    assert layer.groups == 2


def test_halves_become_a_grouped_convolution() -> None:
    model = Block(
        lambda x, a, b: torch.cat([a(x[:, :3]), b(x[:, 3:])], 1),
        with_norm(3, 5, 3),
        with_norm(3, 5, 3),
    )
    _, after = fused(model, 1, 6, 9, 9)
    layer = next(m for m in after.module.modules() if isinstance(m, nn.Conv2d))
    assert (layers(after), layer.groups) == ((1, 0), 2)


def test_space_to_depth_and_convolution_become_a_strided_convolution() -> None:
    model = Block(lambda x, a: torch.relu(a(F.pixel_unshuffle(x, 2))), with_norm(12, 8, 1))
    _, after = fused(model, 1, 3, 12, 8)
    layer = next(m for m in after.module.modules() if isinstance(m, nn.Conv2d))
    assert (layers(after), layer.stride, layer.kernel_size) == ((1, 0), (2, 2), (2, 2))


def test_a_whole_network_keeps_one_convolution_a_block() -> None:
    blocks = [mobileone(8, groups) for groups in (8, 1, 8, 1)]
    model = nn.Sequential(with_norm(3, 8, 3, stride=2), nn.ReLU(), *blocks)
    before, after = fused(model, 1, 3, 32, 32)
    assert (layers(before), layers(after)) == ((21, 25), (5, 0))
    assert after.history[-1].rewrites == 5


def test_exported_programs_fuse_alike() -> None:
    _, after = fused(nn.Sequential(repvgg(2), qarepvgg_of(6)), 2, 4, 16, 16, front_end="export")
    assert layers(after) == (2, 0)


def qarepvgg_of(channels: int) -> nn.Module:
    return Block(
        lambda x, a, pool, norm: torch.relu(norm(a(x) + x + pool(x))),
        with_norm(channels, channels, 3),
        nn.AvgPool2d(3, 1, 1),
        nn.BatchNorm2d(channels),
    )


# --- what stays apart, and why ------------------------------------------------------------------


def sequence(*layers: nn.Module) -> nn.Module:
    def run(x: Tensor, *inner: nn.Module) -> Tensor:
        for layer in inner:
            x = layer(x)
        return torch.relu(x)

    return Block(run, *layers)


NEAR_MISSES = [
    pytest.param(
        sequence(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 3, padding=1)), "border-bias", id="bias"
    ),
    pytest.param(
        sequence(with_norm(4, 8, 1), nn.Conv2d(8, 4, 3, padding=1)), "border-bias", id="norm"
    ),
    pytest.param(
        sequence(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)), "border-bias", id="norm-first"
    ),
    pytest.param(
        sequence(
            nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        ),
        "ring",
        id="double-padding",
    ),
    pytest.param(
        sequence(nn.Conv2d(4, 4, 1), nn.ReflectionPad2d(1), nn.Conv2d(4, 4, 3)),
        "pad-mode",
        id="reflect",
    ),
    pytest.param(
        sequence(nn.Conv2d(4, 4, 1), nn.AvgPool2d(2, ceil_mode=True)), "ceil-mode", id="ceil"
    ),
    pytest.param(
        sequence(nn.Conv2d(4, 4, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
        "count-include-pad",
        id="average-without-padding",
    ),
    pytest.param(
        Block(
            lambda x, a, b: torch.relu(a(x)[:, :, :4, :4] + b(x)[:, :, :4, :4]),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1, stride=2),
        ),
        "size-mismatch",
        id="fixed-slice",
    ),
    pytest.param(
        Block(
            lambda x, a, b: torch.relu(a(x) + b(x)),
            nn.Conv2d(4, 4, 3, padding=1, stride=2),
            nn.AvgPool2d(2),
        ),
        "size-mismatch",
        id="equal-at-even-sizes-only",
    ),
    pytest.param(
        Block(
            lambda x, a, b: torch.relu(a(x) + b(x)),
            nn.Conv2d(4, 4, 8, stride=1),
            nn.Conv2d(4, 4, 1, stride=10),
        ),
        "stride-mismatch",
        id="strides",
    ),
    pytest.param(
        Block(lambda x, a, n: torch.relu(n(y := a(x))) * y, nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)),
        "leak",
        id="leak",
    ),
    pytest.param(sequence(nn.Conv2d(4, 1, 1), nn.Conv2d(1, 16, 1)), "cost", id="bottleneck"),
    pytest.param(
        sequence(nn.Conv2d(4, 4, 7, padding=3, groups=4), nn.Conv2d(4, 32, 1)),
        "cost",
        id="depthwise-and-pointwise",
    ),
    pytest.param(sequence(nn.ReLU(), nn.BatchNorm2d(4)), "nonlinear", id="norm-after-activation"),
    pytest.param(
        Block(lambda x, a, n: torch.relu(n(a(x) * x)), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
        "nonlinear",
        id="gate",
    ),
    pytest.param(
        Block(
            lambda x, a: torch.relu(a(x) + torch.arange(8.0).view(1, 1, 8, 1)),
            nn.Conv2d(4, 4, 1),
        ),
        "layout",
        id="constant-over-the-map",
    ),
]


@pytest.mark.parametrize(("model", "code"), NEAR_MISSES)
def test_a_near_miss_is_refused_with_its_reason(model: nn.Module, code: str) -> None:
    before, after = fused(model, 1, 4, 8, 8)
    assert code in reasons(after)
    assert after.history[-1].rewrites <= 1
    assert ops.count(after, "conv2d") == ops.count(before, "conv2d")
    refusal = next(r for r in after.details(Refusal) if r.code == code)
    assert refusal.source.startswith("test_fuse_affine.py:")
    assert refusal.node in {node.name for node in after.graph.nodes}
    assert str(refusal).startswith(f"`{refusal.node}`")


def test_captured_size_is_taken_only_when_asked_for() -> None:
    model = NEAR_MISSES[8].values[0]
    assert isinstance(model, nn.Module)
    _, after = fused(model, 1, 4, 8, 8, step=FuseAffine(sizes="captured"))
    (certificate,) = after.details(Certificate)
    assert certificate.validity == "8x8 only"
    assert "captured size" in certificate.rules


def test_wrong_option_is_an_error() -> None:
    program = capture(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8), front_end="fx")
    with pytest.raises(FuseqError) as caught:
        rewrite.apply(FuseAffine(sizes="some"), program)
    assert caught.value.code == "FQ012"


def test_a_plain_convolution_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    before, after = fused(model, 1, 3, 8, 8)
    assert after.history[-1].rewrites == 0
    assert to_text(before) == to_text(after)
    assert not list(after.details(Refusal))


def test_no_convolution_appears_where_there_was_none() -> None:
    model = Block(lambda x, n: torch.relu(n(x) * 2 + 1), nn.BatchNorm2d(4))
    _, after = fused(model, 1, 4, 8, 8)
    assert layers(after) == (0, 1)


def test_batch_statistics_are_a_boundary() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    before = capture(model, torch.randn(2, 3, 8, 8))
    after = rewrite.apply(FuseAffine(), before, prove=False)
    assert after.history[-1].rewrites == 0


def test_dead_channels_and_negative_scales_fold() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    norm = model[1]  # type: ignore[index]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    norm.running_var[0], norm.weight[1], norm.weight[2] = 0.0, -3.0, 0.0
    before = capture(model.double(), torch.randn(1, 3, 8, 8).double(), front_end="fx")
    after = rewrite.apply(FuseAffine(), before)
    assert layers(after) == (1, 0)
    assert_same(before, after)


def test_weights_keep_their_dtype_and_source() -> None:
    _, after = fused(with_norm(3, 4, 3), 1, 3, 8, 8)
    (node,) = [n for n in after.graph.nodes if n.op == "call_module"]
    layer = after.get(node)
    assert isinstance(layer, nn.Conv2d)
    assert layer.weight.dtype is torch.float32
    assert after.shape(node) == (1, 4, 8, 8)
    assert node.meta["scope"] == "1"


class TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = with_norm(4, 6, 3, stride=2), nn.Conv2d(4, 6, 1, stride=2)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.wide(x) + 2 * self.narrow(x)))


def test_golden_text() -> None:
    before, after = fused(TwoBranches(), 1, 4, 8, 8)
    assert to_text(before) == BEFORE
    assert to_text(after) == AFTER


BEFORE = """\
%x = input() : f32[1,4,8,8]
%wide_0 = conv2d(%x) channels=4->6 kernel=3x3 stride=(2, 2) padding=(1, 1) bias=False : f32[1,6,4,4]
%wide_1 = batch_norm(%wide_0) eps=1e-05 : f32[1,6,4,4]
%narrow = conv2d(%x) channels=4->6 kernel=1x1 stride=(2, 2) : f32[1,6,4,4]
%mul = mul(%narrow, 2) : f32[1,6,4,4]
%add = add(%wide_1, %mul) : f32[1,6,4,4]
%norm = batch_norm(%add) eps=1e-05 : f32[1,6,4,4]
%relu = relu(%norm) : f32[1,6,4,4]
return %relu
"""
AFTER = """\
%x = input() : f32[1,4,8,8]
%fused = conv2d(%x) channels=4->6 kernel=3x3 stride=(2, 2) padding=(1, 1) : f32[1,6,4,4]
%relu = relu(%fused) : f32[1,6,4,4]
return %relu
"""


def test_the_given_program_is_untouched() -> None:
    before = capture(trained(repvgg(1)), torch.randn(1, 4, 8, 8), front_end="fx")
    text = to_text(before)
    weights = {name: p.clone() for name, p in before.module.named_parameters()}
    rewrite.apply(FuseAffine(), before)
    assert to_text(before) == text
    assert all(torch.equal(weights[name], p) for name, p in before.module.named_parameters())
