"""The curriculum: stages begin where they should, and hold still what they say."""

import copy
import json
from typing import Any

import pytest
import torch

import fuseq
from fuseq.errors import FuseqError
from fuseq.qat import Curriculum, QatModel, Stage, finalize
from fuseq.qat.model import STILL_OBSERVING
from tests.qat.networks import batches, prepared, steps


@pytest.fixture
def model() -> QatModel:
    return prepared()


def is_at(model, observing, frozen):
    return (model.observing, model.weight_grids_frozen) == (observing, frozen)


def moved(model, before):
    """Names of what is no longer as in a state dict."""
    return {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }


def test_the_stages_of_the_paper(model):
    curriculum = Curriculum(model)
    found = []
    for epoch in range(160):
        curriculum.step(epoch)
        found.append((curriculum.stage.name, model.observing, model.weight_grids_frozen))
    assert found[:30] == [("observe", True, False)] * 30
    assert found[30:90] == [("tune", False, False)] * 60
    assert found[90:] == [("freeze", False, True)] * 70


def test_a_length_of_zero_leaves_a_stage_out(model):
    curriculum = Curriculum(model, observe=0, tune=2, freeze=0)
    assert [stage.name for stage in curriculum.stages] == ["tune"]
    curriculum.step(0)
    assert is_at(model, False, False)


def test_what_a_stage_says_stands_still(model):
    curriculum = Curriculum(model, observe=1, tune=1, freeze=1)
    moving_ranges = {"ranges", "activation_scale", "activation_zero_point"}
    for epoch, still in enumerate([set(), moving_ranges, moving_ranges]):
        curriculum.step(epoch)
        before = copy.deepcopy(model.state_dict())
        table = model.table()
        steps(model, batches())
        changed = moved(model, before)
        assert "network.stem.weight" in changed
        assert not changed & still
        assert still or changed & moving_ranges
        grid = model.table().grids["stem.weight"]
        assert (grid == table.grids["stem.weight"]) == (epoch == 2)


def test_a_step_again_or_back_and_forth_changes_what_it_should(model):
    curriculum = Curriculum(model, observe=1, tune=1, freeze=1)
    curriculum.step(2)
    frozen = model.table().grids["stem.weight"]
    steps(model, batches(), rate=0.1)
    curriculum.step(2)
    assert model.table().grids["stem.weight"] == frozen
    curriculum.step(1)
    assert is_at(model, False, False)
    assert model.table().grids["stem.weight"] != frozen


def test_only_what_a_stage_trains_moves(model):
    first = Stage("head", 1, observing=False, weight_grids_frozen=False, trains=("*.head.*",))
    second = Stage("all", 1, observing=False, weight_grids_frozen=False)
    curriculum = Curriculum(model, stages=[first, second])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for epoch, expected in enumerate([["head"], ["gate", "head", "stem"], ["head"]]):
        curriculum.step(epoch % 2)
        before = copy.deepcopy(model.state_dict())
        for batch in batches():
            (model(batch) - batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        layers = {name.split(".")[1] for name in moved(model, before) if "." in name}
        assert sorted(layers & {"gate", "head", "stem"}) == expected


def test_scales_that_stand_are_not_moved_by_momentum():
    model = prepared(learn_scales=True)
    curriculum = Curriculum(model, observe=1, tune=1, freeze=1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    scales = [name for name, _ in model.named_parameters() if name.endswith("scale")]
    for epoch, expected in enumerate([scales, scales[1:], []]):
        curriculum.step(epoch)
        before = copy.deepcopy(model.state_dict())
        for batch in batches():
            (model(batch) - batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        assert moved(model, before) & set(scales) == set(expected)


def test_the_learning_rate_follows_with_any_scheduler(model):
    stages = [
        Stage("fast", 2, observing=True, weight_grids_frozen=False),
        Stage("slow", 1, observing=False, weight_grids_frozen=True, learning_rate_factor=0.1),
    ]
    curriculum = Curriculum(model, stages=stages)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, curriculum.factor)
    for epoch in range(4):
        curriculum.step(epoch)
        assert optimizer.param_groups[0]["lr"] == 0.5 * curriculum.learning_rate_factor
        optimizer.step()
        scheduler.step()
    assert curriculum.learning_rate_factor == 0.1
    other = torch.optim.lr_scheduler.LambdaLR(optimizer, curriculum.factor)
    other.load_state_dict(scheduler.state_dict())
    assert other.get_last_lr() == scheduler.get_last_lr()


def test_weights_are_clipped_to_their_grids(model):
    curriculum = Curriculum(model)
    curriculum.step(90)
    limit = 127 * model.table().grids["stem.weight"].scale.reshape(-1, 1, 1, 1)
    with torch.no_grad():
        model.network.stem.weight.mul_(3)
    curriculum.clip_weights()
    assert bool((model.network.stem.weight.abs() <= limit).all())
    assert bool((model.network.stem.weight.abs() == limit).any())


def test_the_model_may_be_wrapped(model):
    compiled: Any = torch.compile(model, backend="eager")
    assert Curriculum(compiled).model is model
    assert Curriculum(torch.nn.ModuleDict({"student": model})).model is model


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"observe": -1}, "stage 'observe' has length -1"),
        ({"observe": 0, "tune": 0, "freeze": 0}, "no stages"),
        ({"stages": []}, "no stages"),
    ],
)
def test_plans_that_cannot_be_meant(model, options, said):
    with pytest.raises(FuseqError, match=f"FQ012.*{said}"):
        Curriculum(model, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"length": 0}, "has length 0"),
        ({"learning_rate_factor": -0.1}, "factor -0.1"),
        ({"learning_rate_factor": float("nan")}, "factor nan"),
        ({"trains": "*"}, r"a tuple: \('\*',\)"),
        ({"trains": ("network.haed.weight",)}, "did you mean 'network.head.weight'"),
        ({"trains": ("*.nothing",)}, "for example"),
    ],
)
def test_stages_that_cannot_be_meant(model, options, said):
    fields = {"name": "odd", "length": 1, "observing": True, "weight_grids_frozen": False}
    with pytest.raises(FuseqError, match=f"(?s)FQ012.*'odd'.*{said}"):
        Curriculum(model, stages=[Stage(**{**fields, **options})])


def test_steps_before_the_first_are_refused(model):
    with pytest.raises(FuseqError, match="FQ012"):
        Curriculum(model).step(-1)


@pytest.mark.parametrize("count", [0, 2])
def test_a_curriculum_is_of_one_prepared_model(model, count):
    holder = torch.nn.ModuleList([copy.deepcopy(model) for _ in range(count)])
    with pytest.raises(FuseqError, match=f"FQ012.*a ModuleList holds {count} prepared models"):
        Curriculum(holder)


@pytest.mark.parametrize("learn_scales", [False, True])
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_the_file_says_that_an_observer_was_left_on(epoch, learn_scales, tmp_path):
    model = prepared(learn_scales=learn_scales)
    Curriculum(model, observe=1, tune=1, freeze=1).step(epoch)
    fuseq.lower(finalize(model), out=tmp_path / "out", calibration=batches(), check=False)
    manifest = json.loads((tmp_path / "out" / "fuseq.json").read_text())
    left_on = epoch == 0 and not learn_scales
    assert (STILL_OBSERVING in manifest["notes"]) == left_on
