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
