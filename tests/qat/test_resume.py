"""A run that was stopped anywhere goes on as if it had not been."""

import copy
import pickle

import pytest
import safetensors.torch
import torch

from fuseq.qat import Curriculum, QatModel, finalize
from tests.qat.networks import batches, prepared

EPOCHS, STEPS = 6, 2
FIRST, LAST = (0, 1, 2), (2, 1, 0)


class Run:
    """A training of six epochs, two for each stage, and the parts of its checkpoint."""

    def __init__(self, learn_scales, calibration_seed=1):
        self.model = prepared(
            calibration=batches(seed=calibration_seed),
            learn_scales=learn_scales,
            observer="percentile",
        )
        self.curriculum = Curriculum(self.model, observe=2, tune=2, freeze=2)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-3)

    def train(self, first, last):
        """Steps `first` to `last` of the whole run."""
        for step in range(first, last):
            self.curriculum.step(step // STEPS)
            batch = batches(1, seed=100 + step)[0]
            self.optimizer.zero_grad()
            (self.model(batch) - batch).square().mean().backward()
            self.optimizer.step()
            self.curriculum.clip_weights()

    def parts(self):
        return self.model, self.optimizer, self.curriculum


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module", params=[False, True], ids=["following", "learn_scales"])
def uninterrupted(request):
    run = Run(request.param)
    run.train(0, EPOCHS * STEPS)
    return request.param, run.model.state_dict()


@pytest.mark.parametrize(
    ("stop", "order"), [(3, FIRST), (4, LAST), (6, FIRST), (7, LAST), (8, FIRST), (10, LAST)]
)
def test_a_resumed_run_is_the_uninterrupted_one(uninterrupted, stop, order, tmp_path):
    learn_scales, expected = uninterrupted
    run = Run(learn_scales)
    run.train(0, stop)
    torch.save([part.state_dict() for part in run.parts()], tmp_path / "checkpoint.pt")
    resumed = Run(learn_scales, calibration_seed=50)
    states = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for index in order:
        resumed.parts()[index].load_state_dict(states[index])
    resumed.train(stop, EPOCHS * STEPS)
    assert same(resumed.model.state_dict(), expected)


def test_without_its_state_the_curriculum_goes_on_by_the_epoch(uninterrupted):
    learn_scales, expected = uninterrupted
    run, resumed = Run(learn_scales), Run(learn_scales)
    run.train(0, 10)
    resumed.model.load_state_dict(run.model.state_dict())
    resumed.optimizer.load_state_dict(run.optimizer.state_dict())
    resumed.train(10, EPOCHS * STEPS)
    assert same(resumed.model.state_dict(), expected)


@pytest.mark.parametrize("learn_scales", [False, True])
def test_the_state_fits_into_safetensors(learn_scales, tmp_path):
    run = Run(learn_scales)
    run.train(0, 10)
    safetensors.torch.save_file(run.model.state_dict(), tmp_path / "state.safetensors")
    model = Run(learn_scales, calibration_seed=50).model
    model.load_state_dict(safetensors.torch.load_file(tmp_path / "state.safetensors"))
    x = batches(1, seed=7)[0]
    assert torch.equal(model.eval()(x), run.model.eval()(x))
    assert (model.observing, model.weight_grids_frozen) == (False, True)


@pytest.mark.parametrize("learn_scales", [False, True])
def test_a_copy_is_independent(learn_scales):
    run, x = Run(learn_scales), batches(1, seed=7)[0]
    run.train(0, 5)
    before = copy.deepcopy(run.model.state_dict())
    twin = copy.deepcopy(run.model)
    run.train(5, EPOCHS * STEPS)
    assert same(twin.state_dict(), before)
    assert not same(run.model.state_dict(), before)
    assert twin.program.module is twin.network
    twin.load_state_dict(run.model.state_dict())
    assert torch.equal(twin.eval()(x), run.model.eval()(x))
    assert torch.equal(finalize(twin)(x), finalize(run.model)(x))


def test_a_moving_average_of_weights_can_be_evaluated():
    run = Run(learn_scales=False)
    average = torch.optim.swa_utils.AveragedModel(
        run.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5), use_buffers=False
    )
    for step in range(EPOCHS * STEPS):
        run.train(step, step + 1)
        average.update_parameters(run.model)
    x = batches(1, seed=7)[0]
    twin, model = average.module, run.model
    assert isinstance(twin, QatModel)
    assert torch.equal(twin.eval()(x), finalize(twin)(x))
    assert not torch.equal(twin(x), model.eval()(x))
    assert twin.table().grids["stem.weight"] == model.table().grids["stem.weight"]


def test_pickling_says_what_to_do_instead():
    with pytest.raises(TypeError, match="cannot pickle a Program: save the state_dict"):
        pickle.dumps(prepared())
