"""Two processes train one model: what they agree on, and how disagreement is found."""

import itertools

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from tests.qat import two_ranks
from tests.qat.networks import prepared
from tests.qat.two_ranks import RANKS, data_of, prepared_from, state_of


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each rank made of each scene."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn(two_ranks.run, (folder,), RANKS)
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(RANKS)]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def interleaved(*parts):
    """Batches as one process reads them that has those of all ranks."""
    return [batch for several in zip(*parts, strict=True) for batch in several]


@pytest.mark.parametrize("scene", ["observing", "observing_without_broadcast"])
def test_ranges_are_those_of_one_process_with_all_images(ranks, scene):
    first, second = (results[scene] for results in ranks)
    assert same(first, second)
    model = prepared()
    for batch in map(torch.cat, zip(data_of(0), data_of(1), strict=True)):
        model(batch)
    assert same(first, state_of(model))
    assert not torch.equal(first["ranges"], prepared().ranges)


def test_ranges_of_one_rank_are_found_when_a_stage_begins(ranks):
    for results in ranks:
        said = results["planted_ranges_of_one_rank"]
        assert "error[FQ404]: ranks disagree on ranges, activation_scale" in said


@pytest.mark.parametrize("scene", ["training", "training_with_learned_scales"])
def test_ranks_train_one_model(ranks, scene):
    (first, output), (second, other_output) = (results[scene] for results in ranks)
    assert same(first, second)
    assert torch.equal(output, other_output)


def test_what_a_stage_freezes_stands_still_on_all_ranks(ranks):
    for results in ranks:
        states = results["frozen_scales"]
        for before, after in itertools.pairwise(states[4:]):
            assert torch.equal(before["activation_scale_log"], after["activation_scale_log"])
            assert torch.equal(before["stem_weight_scale_log"], after["stem_weight_scale_log"])
        assert not torch.equal(states[0]["activation_scale_log"], states[2]["activation_scale_log"])
        assert not torch.equal(states[4]["network.stem.weight"], states[6]["network.stem.weight"])


def test_frozen_scales_leave_parameters_without_gradient(ranks):
    for results in ranks:
        said = results["learned_scales_need_an_option"]
        assert "error[FQ012]: stage 'tune' leaves parameters without a gradient" in said
        assert "find_unused_parameters=True" in said


def test_ranks_accumulate_gradients_of_one_model(ranks):
    first, second = (results["accumulating"] for results in ranks)
    assert same(first, second)
    before = prepared()
    assert not torch.equal(first["ranges"], before.ranges)
    name = "network.stem.weight"
    assert not torch.equal(first[name], before.get_parameter(name))


@pytest.mark.parametrize(
    ("scene", "name"),
    [
        ("planted_weight_of_one_rank", "network.head.weight"),
        ("no_wrapper", "network.stem.weight"),
        ("resuming_on_one_rank", "network.stem.weight"),
    ],
)
def test_what_differs_is_named_on_every_rank(ranks, scene, name):
    for results in ranks:
        assert results[scene].startswith("error[FQ404]: ranks disagree on ")
        assert name in results[scene]


@pytest.mark.parametrize("observer", ["minmax", "moving-average", "percentile", "mse"])
def test_preparing_looks_at_the_data_of_all_ranks(ranks, observer):
    first, second = (results["preparing"][observer] for results in ranks)
    assert same(first, second)
    assert same(first, prepared_from(interleaved(data_of(0), data_of(1)), observer))
    assert not same(first, prepared_from(data_of(0), observer))


def test_ranks_may_have_parts_of_other_lengths(ranks):
    first, second = (results["preparing_with_parts_of_other_lengths"] for results in ranks)
    assert same(first, second)
    together = [*interleaved(data_of(0, 2), data_of(1, 2)), data_of(0, 3)[2]]
    assert same(first, prepared_from(together))


def test_what_all_ranks_are_given_counts_once(ranks):
    for results in ranks:
        assert same(results["preparing_with_the_same_loader"], prepared_from(data_of(1)))


def test_the_model_of_the_first_rank_is_prepared(ranks):
    first, second = (results["preparing_with_other_weights"] for results in ranks)
    assert same(first, second)
    assert same(first, prepared_from(interleaved(data_of(0), data_of(1))))


def test_bad_data_of_one_rank_is_said_on_both(ranks):
    for results in ranks:
        said = results["preparing_with_bad_data_on_one_rank"]
        assert "error[FQ006]: calibration batch 2 has shape (2, 2, 16, 16)" in said
