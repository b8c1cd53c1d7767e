import copy
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq import plugins, rewrite
from fuseq.program import Program

RecalibrateBatchNorm = plugins.load("passes", "recalibrate-bn")


class Branchy(nn.Module):
    """Norms on the input, in parallel branches, in a chain, and directly behind one another."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3)
        self.left, self.left_norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.right, self.right_norm = nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.both = nn.BatchNorm2d(6)
        self.last, self.last_norm = nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)
        self.again = nn.BatchNorm2d(4)
        self.register_buffer("mask", torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = F.relu(self.left_norm(self.left(y))) + self.right_norm(self.right(x))
        y = torch.tanh(self.both(y))
        y = self.again(self.last_norm(self.last(y)))
        return F.relu(y) * self.mask


def perturbed(module: nn.Module) -> nn.Module:
    """Statistics and affine parameters off their defaults: stale ones must not survive."""
    torch.manual_seed(0)
    with torch.no_grad():
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 2)
                norm.bias.normal_()
                assert norm.running_mean is not None
                assert norm.running_var is not None
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.1, 9)
    return module.eval()


def images(count: int = 10) -> Tensor:
    """Batches drawn from different distributions: averaging batch variances would show."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, 3, 9, 8, generator=generator)
    return x * torch.linspace(0.2, 3, count).reshape(-1, 1, 1, 1) + torch.linspace(
        -2, 2, count
    ).reshape(-1, 1, 1, 1)


def whole_set_statistics(module: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """By the definition, norm after norm in execution order, each from one float64 forward."""
    module = copy.deepcopy(module).double()
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def settle(name: str) -> Any:
        def hook(norm: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].transpose(0, 1).flatten(1)
            mean, var = values.mean(1), values.var(1, correction=1)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)
            seen[name] = (mean, var)

        return hook

    for name, norm in module.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.register_forward_pre_hook(settle(name))
    with torch.no_grad():
        module(x.double())
    return seen


def statistics(program: Program) -> dict[str, tuple[Tensor, Tensor]]:
    found = {}
    for name, norm in program.module.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            found[name] = (norm.running_mean, norm.running_var)
    return found


def recalibrated(program: Program, data: Iterable[Any], **options: Any) -> Program:
    return rewrite.apply(RecalibrateBatchNorm(calibration=data, **options), program)


def assert_close(
    actual: dict[str, tuple[Tensor, Tensor]], expected: dict[str, tuple[Tensor, Tensor]], rel: float
) -> None:
    assert actual.keys() == expected.keys()
    for name, pair in actual.items():
        for a, b in zip(pair, expected[name], strict=True):
            scale = float(b.abs().max())
            assert float((a.double() - b).abs().max()) <= rel * scale, name


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return perturbed(Branchy())


@pytest.fixture(scope="module")
def program(module: nn.Module) -> Program:
    return fuseq.capture(module, images(2))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_statistics_are_those_of_the_whole_set(
    module: nn.Module, program: Program, batch_size: int
) -> None:
    """10 images in batches of 3 and 7 leave an uneven last batch."""
    x = images()
    expected = whole_set_statistics(module, x)
    actual = statistics(recalibrated(program, torch.split(x, batch_size)))
    assert_close(actual, expected, rel=1e-6)
    wide = recalibrated(program.twin(torch.float64), torch.split(x.double(), batch_size))
    assert_close(statistics(wide), expected, rel=1e-12)


def test_keeping_values_between_levels_changes_no_bit(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = torch.split(images(), 3)
    kept = statistics(recalibrated(program, data))
    room_for_one_batch = 9 * 8 * 3 * 8 * 4
    for room in (0, room_for_one_batch):
        monkeypatch.setattr("fuseq.level_sweep.KEPT_BYTES", room)
        for name, pair in statistics(recalibrated(program, data)).items():
            assert all(torch.equal(a, b) for a, b in zip(pair, kept[name], strict=True)), name


def test_each_layer_runs_once_per_batch(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[nn.Module] = []
    forward = nn.Conv2d.forward

    def counted(self: nn.Conv2d, x: Tensor) -> Tensor:
        calls.append(self)
        return forward(self, x)

    monkeypatch.setattr(nn.Conv2d, "forward", counted)
    step = RecalibrateBatchNorm(calibration=torch.split(images(), 5))
    step.run(program.clone())
    assert len(calls) == 2 * 3  # two batches, three convolutions


def test_large_offsets_do_not_cancel(program: Program) -> None:
    x = images() + 1e4
    mean, var = statistics(recalibrated(program, torch.split(x, 2)))["first"]
    values = x.double().transpose(0, 1).flatten(1)
    assert torch.allclose(var.double(), values.var(1), rtol=1e-6)
    assert torch.allclose(mean.double(), values.mean(1), rtol=1e-6)


def test_everything_else_stays(program: Program) -> None:
    before = {k: v.clone() for k, v in program.module.state_dict().items()}
    result = recalibrated(program, [images()])
    for key, value in program.module.state_dict().items():
        assert torch.equal(value, before[key]), f"the input program changed: {key}"
    for key, value in result.module.state_dict().items():
        statistic = key.endswith(("running_mean", "running_var"))
        assert torch.equal(value, before[key]) != statistic, key
    assert not any(m.training for m in result.module.modules() if isinstance(m, nn.BatchNorm2d))


def test_data_is_not_changed_and_needs_no_gradient(program: Program) -> None:
    x = images().requires_grad_()
    before = x.detach().clone()
    result = recalibrated(program, [x])
    assert torch.equal(x, before)
    assert x.grad is None
    assert all(not v.requires_grad for pair in statistics(result).values() for v in pair)


def test_labels_behind_the_inputs_are_ignored(program: Program) -> None:
    x = images()
    with_labels = recalibrated(program, [(x, torch.arange(10))])
    for name, pair in statistics(recalibrated(program, [x])).items():
        assert torch.equal(pair[1], statistics(with_labels)[name][1])


def test_progress_counts_batches_over_levels(program: Program) -> None:
    seen: list[int] = []
    recalibrated(program, torch.split(images(), 4), progress=seen.append)
    assert seen == list(range(1, 3 * 5 + 1))  # three batches, five levels of norms


def test_batches_limits_what_is_read(program: Program, module: nn.Module) -> None:
    x = images()
    actual = statistics(recalibrated(program, torch.split(x, 3), batches=2))
    assert_close(actual, whole_set_statistics(module, x[:6]), rel=1e-6)


def test_a_generator_is_read_once(program: Program, module: nn.Module) -> None:
    x = images()
    actual = statistics(recalibrated(program, iter(torch.split(x, 3))))
    assert_close(actual, whole_set_statistics(module, x), rel=1e-6)


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (None, "FQ202", "needs data"),
        ([], "FQ006", "empty"),
        ([torch.rand(2, 4, 9, 8)], "FQ006", "batch 1 has shape"),
        ([torch.rand(2, 3, 9, 8), ()], "FQ006", "batch 2 has 0 tensors"),
    ],
)
def test_refuses_data_it_cannot_use(
    program: Program, data: Sequence[Any] | None, code: str, message: str
) -> None:
    with pytest.raises(fuseq.FuseqError, match=message) as caught:
        rewrite.apply(RecalibrateBatchNorm(calibration=data), program)
    assert caught.value.code == code


def test_refuses_a_single_value_per_channel() -> None:
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    program = fuseq.capture(pooled.eval(), images(2))
    with pytest.raises(fuseq.FuseqError, match="single value per channel") as caught:
        recalibrated(program, [images(1)])
    assert caught.value.code == "FQ006"
    two = recalibrated(program, torch.split(images(2), 1))
    assert all(torch.isfinite(v).all() for pair in statistics(two).values() for v in pair)


def test_a_program_without_norms_is_left_alone() -> None:
    program = fuseq.capture(nn.Conv2d(3, 4, 3), images(2))
    assert recalibrated(program, [images()]).history[-1].rewrites == 0


class SharedNorm(nn.Module):
    """One norm on two different inputs: in training each call has its own batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3, momentum=None)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(F.relu(self.norm(x)) * 3 + self.conv(x) + 1)
        return y


@pytest.mark.parametrize("front_end", ["fx", "export"])
@pytest.mark.parametrize("batch_size", [1, 4, 10])
def test_each_call_of_a_shared_norm_gets_its_own_statistics(
    front_end: str, batch_size: int
) -> None:
    model, x = perturbed(SharedNorm()).double(), images().double()
    program = fuseq.capture(model, x[:2], front_end=front_end)
    result = recalibrated(program, torch.split(x, batch_size))
    # In training mode, over the whole set at once, each call normalizes by its own statistics:
    # by the biased variance, where running statistics hold the unbiased one.
    values = x.numel() / 3
    expected = whole_set_output(model, x, values / (values - 1))
    torch.testing.assert_close(result(x), expected, rtol=1e-10, atol=1e-10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def whole_set_output(model: nn.Module, x: Tensor, correction: float) -> Tensor:
    """Output in training mode on the whole set, each variance as torch keeps it."""
    norm = copy.deepcopy(model.norm)
    assert isinstance(norm, nn.BatchNorm2d)

    def normalize(y: Tensor) -> Tensor:
        mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0) * correction
        return F.batch_norm(y, mean, var, norm.weight, norm.bias, eps=norm.eps)

    with torch.no_grad():
        assert isinstance(model.conv, nn.Conv2d)
        return normalize(F.relu(normalize(x)) * 3 + model.conv(x) + 1)


def test_stale_statistics_are_mended() -> None:
    """A network moved to data of another brightness comes back to what batch statistics give."""
    model = perturbed(Branchy()).double()
    x = images(16).double() * 4 + 7
    program = fuseq.capture(model, x[:2])
    with torch.no_grad():
        fresh = copy.deepcopy(model).train()(x)
    stale = (program(x) - fresh).norm() / fresh.norm()
    mended = (recalibrated(program, torch.split(x, 5))(x) - fresh).norm() / fresh.norm()
    assert stale > 0.3
    assert mended < 2e-3  # the unbiased variance against the biased one of 864 values


def test_norms_without_running_statistics_are_left_alone() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    program = fuseq.capture(nn.Sequential(nn.Conv2d(3, 4, 3), norm), images(2))
    assert recalibrated(program, [images()]).history[-1].rewrites == 0
