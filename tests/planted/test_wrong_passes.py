"""Wrong passes the pipeline must reject, with the code of the fault and the name of a node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq import verify
from fuseq.errors import FuseqError
from fuseq.rewrite import Pass, apply
from tests.planted import wrong_passes as wrong


class Lambda(nn.Module):
    def __init__(self, forward: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def conv(kernel: int = 3, **options: int) -> nn.Conv2d:
    options.setdefault("padding", kernel // 2)
    return nn.Conv2d(4, 4, kernel, **options)  # type: ignore[arg-type]


def plain() -> nn.Module:
    return nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU())


def three() -> nn.Module:
    return nn.Sequential(conv(), nn.ReLU(), conv())


def twice() -> nn.Module:
    """One convolution and one norm, called twice."""
    return Lambda(lambda m, x: m.n(m.c(F.relu(m.n(m.c(x))))), c=conv(), n=nn.BatchNorm2d(4))


def tied() -> nn.Module:
    """Two convolutions that share their weight, each with a norm of its own."""
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU(), conv(), nn.BatchNorm2d(4))
    model[3].weight = model[0].weight
    return model


def used_twice() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        y = m.c(x)
        return F.relu(m.n(y)) + y

    return Lambda(forward, c=conv(), n=nn.BatchNorm2d(4))


def two(first: nn.Module, second: nn.Module) -> Callable[[], nn.Module]:
    return lambda: Lambda(lambda m, x: F.relu(m.a(x) + m.b(x)), a=first, b=second)


def identity_branch() -> nn.Module:
    return Lambda(lambda m, x: F.relu(m.c(x) + x), c=conv())


def shifted() -> nn.Module:
    """A strided branch, and one that takes the positions between."""
    return Lambda(
        lambda m, x: m.a(x) + m.b(x)[:, :, 1::2, 1::2],
        a=conv(stride=2),
        b=conv(1, padding=0, bias=False),
    )


def concat() -> nn.Module:
    return Lambda(lambda m, x: torch.cat([m.a(x), m.b(x)], 1), a=conv(), b=conv(1))


def even() -> nn.Module:
    return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), conv(2, padding=0))


def pooled() -> nn.Module:
    return nn.Sequential(conv(), nn.AvgPool2d(3, 1, 1, count_include_pad=False))


def gate() -> nn.Module:
    return Lambda(lambda m, x: m.a(x) * torch.sigmoid(m.b(x)), a=conv(), b=conv(1))


def gate_with_reader() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        a, b = m.a(x), m.b(x)
        return a * b + torch.relu(b)

    return Lambda(forward, a=conv(), b=conv(1))


def chain(between: Callable[[Tensor], Tensor] = F.relu) -> nn.Module:
    return Lambda(lambda m, x: F.gelu(m.b(between(m.a(x)))), a=conv(), b=conv())


def rectified() -> nn.Module:
    return chain(lambda y: F.leaky_relu(y, 0.2))


def relu6() -> nn.Module:
    return chain(F.relu6)


def saturating() -> nn.Module:
    return chain(torch.tanh)


def split() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        a, b = torch.chunk(m.a(x), 2, 1)
        return F.gelu(m.b(F.relu(a))) + torch.sigmoid(b)

    return Lambda(forward, a=nn.Conv2d(4, 8, 3, padding=1), b=conv())


def shared_reader() -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        y = F.relu(m.a(x))
        return F.gelu(m.b(y)) + y

    return Lambda(forward, a=conv(), b=conv())


def two_inputs() -> nn.Module:
    return Lambda(lambda m, x, y: m.c(x + y), c=conv())


FOLD = wrong.FoldBatchNorm
PLANTED: list[tuple[str, Pass, Callable[[], nn.Module], str]] = [
    ("FQ301", wrong.DropBatchNorm(), plain, "relu"),
    ("FQ301", wrong.DropDefaultBatchNorm(), plain, "relu"),
    ("FQ301", FOLD("eps"), plain, "_0"),
    ("FQ301", FOLD("gamma"), plain, "_0"),
    ("FQ301", FOLD("mean"), plain, "_0"),
    ("FQ301", FOLD("bias"), plain, "_0"),
    ("FQ301", FOLD(), twice, "c"),
    ("FQ301", FOLD(), tied, "_0"),
    ("FQ301", FOLD("users"), used_twice, "add"),
    (
        "FQ301",
        wrong.MergePaddedSequence(),
        lambda: nn.Sequential(conv(1), conv(), nn.ReLU()),
        "_1",
    ),
    (
        "FQ301",
        wrong.MergeTwoPadded(),
        lambda: nn.Sequential(conv(bias=False), conv(bias=False), nn.ReLU()),
        "_1",
    ),
    ("FQ301", wrong.MergeGroups(), two(conv(), conv(groups=2, bias=False)), "a"),
    (
        "FQ301",
        wrong.MergeDilated(),
        two(conv(), conv(dilation=2, padding=2, bias=False)),
        "a",
    ),
    ("FQ301", wrong.MergeAtCorner(), two(conv(), conv(1, bias=False)), "a"),
    ("FQ301", wrong.MergeShifted(), shifted, "a"),
    ("FQ301", wrong.ForgetIdentity(), identity_branch, "relu"),
    ("FQ301", wrong.DropRelu(), plain, "relu"),
    ("FQ301", wrong.SwapConcat(), concat, "concat"),
    ("FQ301", wrong.PadBefore(), even, "pad"),
    ("FQ301", wrong.PoolAsConv(), pooled, "avg_pool"),
    ("FQ301", wrong.SlopeLost(), lambda: nn.Sequential(conv(), nn.LeakyReLU(0.2)), "leaky_relu"),
    (
        "FQ301",
        wrong.ScaleTransposedRows(),
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 2, 2), nn.BatchNorm2d(4), nn.ReLU()),
        "_0",
    ),
    ("FQ301", wrong.MergeGate("half"), gate, "sigmoid"),
    ("FQ301", wrong.MergeGate("corner"), gate, "sigmoid"),
    ("FQ301", wrong.MergeGate("bias"), gate, "sigmoid"),
    ("FQ301", wrong.MergeGate("readers"), gate_with_reader, "relu"),
    ("FQ301", wrong.EqualizeWrongly("inverse"), chain, "a"),
    ("FQ301", wrong.EqualizeWrongly("twice"), chain, "a"),
    ("FQ301", wrong.EqualizeWrongly("bias"), chain, "a"),
    ("FQ301", wrong.EqualizeWrongly("columns"), chain, "a"),
    ("FQ301", wrong.EqualizeWrongly("half"), split, "slice_2"),
    ("FQ301", wrong.EqualizeWrongly("negative"), rectified, "a"),
    ("FQ301", wrong.EqualizeWrongly("path"), relu6, "a"),
    ("FQ301", wrong.EqualizeWrongly("path"), saturating, "a"),
    ("FQ301", wrong.EqualizeWrongly("path"), shared_reader, "add"),
    ("FQ301", wrong.ClipTooSoon(), saturating, "tanh"),
    ("FQ204", wrong.DropPool(), lambda: nn.Sequential(conv(), nn.AvgPool2d(2)), "output"),
    ("FQ204", wrong.DeleteInput(), two_inputs, "input_1"),
    ("FQ204", wrong.RenameInput(), plain, "image"),
    ("FQ203", wrong.TrainingMode(), plain, "_1"),
    ("FQ203", wrong.ShareModule(), three, "_0"),
    ("FQ203", wrong.UseBeforeDefinition(), three, "relu"),
    ("FQ203", wrong.DanglingTarget(), plain, "_0"),
    ("FQ203", wrong.AttributeLost(), even, "pad"),
    ("FQ206", wrong.Raises(), plain, "wrong_passes.py"),
]  # fmt: skip


def captured(make: Callable[[], nn.Module]) -> fuseq.Program:
    torch.manual_seed(0)
    count = 2 if make is two_inputs else 1
    return fuseq.capture(make(), [torch.randn(1, 4, 10, 8) for _ in range(count)])


@pytest.mark.parametrize(
    ("code", "step", "make", "node"),
    PLANTED,
    ids=[
        f"{type(step).__name__}-{make.__name__}-{i}" for i, (_, step, make, _) in enumerate(PLANTED)
    ],
)
def test_rejected(code: str, step: Pass, make: Callable[[], nn.Module], node: str) -> None:
    program = captured(make)
    before = {name: value.clone() for name, value in program.module.state_dict().items()}
    text = str(program.graph)
    with pytest.raises(FuseqError) as rejected:
        apply(step, program)
    assert rejected.value.code == code
    if code == "FQ301":
        assert (rejected.value.where or "").startswith(f"`{node}`")
    assert node in str(rejected.value)
    assert str(program.graph) == text
    for name, value in program.module.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_fold_is_right_where_nothing_is_forgotten() -> None:
    result = apply(FOLD(), captured(plain))
    assert result.history[-1].rewrites == 1
    assert result.history[-1].error is not None
    assert result.history[-1].error < 1e-14


def test_scales_move_rightly_where_nothing_is_wrong() -> None:
    assert apply(wrong.EqualizeWrongly("nothing"), captured(rectified)).history[-1].error == 0


@pytest.mark.parametrize("step", [wrong.DropBatchNorm(), FOLD("eps"), FOLD("gamma")])
def test_fresh_float32_weights_would_have_let_it_pass(step: Pass) -> None:
    """Why the twin is perturbed: what people usually do accepts these."""
    program = captured(plain)
    result = apply(step, program, prove=False)
    x = torch.randn(2, 4, 20, 16)
    (expected,), (actual,) = (verify.outputs(p, (x,)) for p in (program, result))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
