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


def test_a_scale_that_a_step_carries_across_zero_learns_on():
    model, x = prepared(learn_scales=True), batches(1)[0]
    before = model(x)
    with torch.no_grad():
        model.get_parameter("stem_weight_scale").neg_()
        model.activation_scale.neg_()
    after = model(x)
    assert torch.equal(after, before)
    after.square().mean().backward()
    gradient = model.get_parameter("stem_weight_scale").grad
    assert gradient is not None
    assert bool((gradient != 0).all())
    assert all(bool((grid.scale > 0).all()) for grid in model.table().grids.values())
