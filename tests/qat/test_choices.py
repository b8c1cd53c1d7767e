"""Choices of quantization, and torch.compile, in training."""

import pytest
import torch

from tests.qat.networks import batches, prepared, steps


@pytest.mark.parametrize(
    "options",
    [
        {"per_channel": False},
        {"activation": "uint16"},
        {"wide": ("add_1",)},
        {"keep": ("gate",)},
        {"observer": "mse"},
    ],
)
def test_choices_of_quantization_are_trained_too(options):
    model = prepared(**options)
    steps(model, batches())
    model.stage(observing=False, weight_grids_frozen=True)
    x = batches(1, seed=7)[0]
    trained = model(x)
    assert torch.equal(model.eval()(x), trained)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*")
def test_compiling_changes_nothing():
    model, x = prepared(), batches(1)[0]
    model.stage(observing=False, weight_grids_frozen=False)
    assert torch.equal(torch.compile(model)(x), model(x))


def test_one_scale_for_a_weight_stays_one_while_it_learns():
    model = prepared(learn_scales=True, per_channel=False)
    steps(model, batches(), rate=1e-3)
    grids = model.table().grids
    assert len(grids["stem.weight"].scale) == 8
    assert len(grids["stem.weight"].scale.unique()) == 1


@pytest.mark.parametrize("step", [-20.0, 20.0, -200.0, 200.0])
def test_a_learned_scale_is_positive_and_finite_whatever_the_step(step):
    model, x = prepared(learn_scales=True), batches(1)[0]
    with torch.no_grad():
        model.get_parameter("stem_weight_scale_log").add_(step)
        model.activation_scale_log.add_(step)
    model(x).square().mean().backward()
    for grid in model.table().grids.values():
        assert bool(((grid.scale > 0) & grid.scale.isfinite()).all())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_adam_learns_scales_at_the_rate_of_weights():
    model, data = prepared(learn_scales=True), batches()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    before = float((model(data[0]) - data[0]).detach().square().mean())
    for _ in range(10):
        for batch in data:
            optimizer.zero_grad()
            (model(batch) - batch).square().mean().backward()
            optimizer.step()
    assert float((model(data[0]) - data[0]).detach().square().mean()) < before
    grown = model.activation_scale_log.detach()
    assert 0 < float(grown.abs().max()) < 0.1
    fixed = ~model.learning
    assert bool(fixed.any()) or not model.structure.fixed
    assert bool((grown[fixed] == 0).all())


def test_learned_grids_stay_as_coarse_as_integer_kernels_need():
    model, x = prepared(learn_scales=True), batches(1)[0]
    with torch.no_grad():
        for name in ("mul", "add_1"):
            model.activation_scale_log[model.index[name]] = -30.0
    grids = model.table().grids
    assert grids["add_1"].scale >= torch.maximum(grids["mul"].scale, grids["stem"].scale) / 128
    assert grids["mul"].scale >= grids["relu"].scale * grids["sigmoid"].scale / 2**14
    with torch.no_grad():
        trained = model(x)
        assert torch.equal(model.eval()(x), trained)
