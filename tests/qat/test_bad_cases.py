"""Data and weights that go wrong: training goes on with finite grids, or says what to do."""

import re

import pytest
import torch
from torch import Tensor, nn

import fuseq
from fuseq.errors import FuseqError
from fuseq.qat import QatModel
from fuseq.qat.preparation import PASSES
from tests.qat.networks import Residual, batches, prepared, steps

STAGES = [(True, False), (False, False), (False, True)]


def finite_and_alike(model: QatModel, data: list[Tensor], rate: float = 1e-3) -> None:
    """Steps in every stage: finite gradients, finite grids, training as evaluation."""
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for observing, frozen in STAGES:
        model.stage(observing=observing, weight_grids_frozen=frozen)
        for x in data:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            assert gradients
            assert all(bool(gradient.isfinite().all()) for gradient in gradients)
            optimizer.step()
        for name, grid in model.table().grids.items():
            assert bool((grid.scale.isfinite() & (grid.scale > 0)).all()), name
    for x in data:
        trained = model(x)
        assert bool(trained.isfinite().all())
        assert torch.equal(model.eval()(x), trained)
        model.train()


def edited(name: str, factor: float, channel: int | None = None) -> nn.Module:
    """A network with one layer's weight and bias multiplied, or one channel's."""
    torch.manual_seed(0)
    model = Residual()
    layer = model.get_submodule(name)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter[slice(None) if channel is None else channel] *= factor
    return model


class Dead(nn.Module):
    """A ReLU that never passes anything, and one that does."""

    def __init__(self) -> None:
        super().__init__()
        self.dead, self.alive = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.head = nn.Conv2d(4, 3, 1)
        nn.init.constant_(self.dead.get_parameter("bias"), -100.0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.dead(x)) + torch.relu(self.alive(x)))
        return y


class Flat(nn.Module):
    """A batch norm whose channel never varied."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 3, 1)
        nn.init.zeros_(self.conv.weight[1])
        nn.init.zeros_(self.norm.get_buffer("running_var"))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.norm(self.conv(x))))
        return y


MODELS = {
    "a channel of zeros": lambda: edited("stem", 0.0, 3),
    "a layer of zeros": lambda: edited("stem", 0.0),
    "a last layer of zeros": lambda: edited("head", 0.0),
    "a dead relu": Dead,
    "a variance of zero": Flat,
    "tiny weights": lambda: edited("stem", 1e-30),
    "weights below the normal numbers": lambda: edited("head", 1e-42),
    "huge weights": lambda: edited("head", 1e15),
}


@pytest.mark.parametrize("learn_scales", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_odd_weights_train_on_finite_grids(name, learn_scales):
    passes = "fuse-affine,equalize" if name == "a variance of zero" else PASSES
    model = prepared(MODELS[name](), learn_scales=learn_scales, passes=passes)
    finite_and_alike(model, batches(2), rate=0.0 if name == "huge weights" else 1e-3)


DATA = {
    "constant": lambda x: torch.full_like(x, 0.5),
    "zero": torch.zeros_like,
    "one pixel": lambda x: x * (torch.arange(x.numel()).reshape(x.shape) == 7),
    "one image": lambda x: x[:1],
    "negative": lambda x: -x,
}


@pytest.mark.parametrize("learn_scales", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_odd_data_trains_on_finite_grids(name, learn_scales):
    data = [DATA[name](x) for x in batches(2)]
    torch.manual_seed(0)
    model = fuseq.qat.prepare(Residual(), data[0], calibration=data[:1], learn_scales=learn_scales)
    finite_and_alike(model, data)


def test_data_far_outside_saturates_and_is_followed_while_observing():
    model, far = prepared(), [1000 * x for x in batches()]
    model.stage(observing=False, weight_grids_frozen=False)
    before = model.table().grids["x"]
    with torch.no_grad():
        assert torch.equal(model(far[0]), model.eval()(far[0]))
        assert float(model.train()(far[0]).max()) <= 255 * float(model.table().grids["head"].scale)
    assert model.table().grids["x"] == before
    model.stage(observing=True, weight_grids_frozen=False)
    for _ in range(100):
        for x in far:
            model(x)
    reaches = 255 * float(model.table().grids["x"].scale)
    assert 900 < reaches < 1000


@pytest.mark.parametrize("scale", [1e7, 1e25])
def test_a_sum_far_outside_its_grid_is_cut_as_in_evaluation(scale):
    """Its value in steps is beyond int32."""
    model, x = prepared(), batches(1)[0]
    model.stage(observing=False, weight_grids_frozen=False)
    model.activation_scale[model.index["stem"]] = scale
    with torch.no_grad():
        trained = model(x)
        assert torch.equal(model.eval()(x), trained)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_batch_that_is_not_finite_is_named(value):
    model, x = prepared(), batches(1)[0].clone()
    x[0, 0, 0, 0] = value
    with pytest.raises(FuseqError, match="input `x` has values that are not finite") as caught:
        model(x)
    assert caught.value.code == "FQ401"


@pytest.mark.parametrize("learn_scales", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_after_a_loss_that_is_not_finite_the_next_forward_says_so(value, learn_scales):
    model, (x,) = prepared(learn_scales=learn_scales), batches(1)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    (model(x).mean() * value).backward()
    optimizer.step()
    for use in (lambda: model(x), lambda: fuseq.qat.finalize(model)):
        with pytest.raises(FuseqError, match="clip gradients, lower the learning rate") as caught:
            use()
        assert caught.value.code == "FQ402"


def test_a_learned_scale_that_is_not_finite_is_named():
    model, (x,) = prepared(learn_scales=True), batches(1)
    with torch.no_grad():
        model.activation_scale_log[2] = float("nan")
    with pytest.raises(FuseqError, match="not finite: activation_scale_log") as caught:
        model(x)
    assert caught.value.code == "FQ402"


def test_an_overflow_in_a_batch_leaves_the_grids_as_they_were():
    model, (x,) = prepared(), batches(1)
    with torch.no_grad():
        model.program.module.get_parameter("stem.weight").mul_(1e38)
    scales = model.activation_scale.clone()
    with pytest.raises(FuseqError, match=r"the range of `stem`, .* has no scale") as caught:
        model(x * 1e10)
    assert caught.value.code == "FQ402"
    assert torch.equal(model.activation_scale, scales)


def test_weights_too_large_for_any_scale_are_named():
    model = prepared()
    with torch.no_grad():
        model.program.module.get_parameter("head.weight").fill_(3e38)
        model.activation_scale[model.index["requantize"]] = 1e10
    with pytest.raises(FuseqError, match=re.escape("the scale of `head.bias` is not finite")):
        fuseq.qat.finalize(model)


@pytest.mark.parametrize("empty", [list, lambda: iter(()), lambda: [torch.rand(0, 3, 16, 16)]])
def test_an_empty_loader_is_refused(empty):
    with pytest.raises(FuseqError) as caught:
        fuseq.qat.prepare(Residual(), batches(1)[0], calibration=empty())
    assert caught.value.code == "FQ006"


def test_calibration_that_is_not_finite_is_refused():
    data = [*batches(1), batches(1)[0] * float("nan")]
    with pytest.raises(FuseqError, match="during calibration") as caught:
        fuseq.qat.prepare(Residual(), data[0], calibration=data, passes="fuse-affine")
    assert caught.value.code == "FQ401"


def test_a_variance_beyond_float32_is_named():
    with pytest.raises(FuseqError, match="the variance of what `norm`") as caught:
        prepared(edited("stem", 1e30))
    assert caught.value.code == "FQ401"


def test_steps_after_bad_ones_train_as_before():
    model, good = prepared(), batches()
    with pytest.raises(FuseqError):
        model(good[0] * float("nan"))
    steps(model, good)
    other = prepared()
    steps(other, good)
    assert torch.equal(model.eval()(good[0]), other.eval()(good[0]))
