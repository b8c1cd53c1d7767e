"""Learnable magnitude reweighting: balance, bounds, noise, and resuming."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fuseq.qat.reweighting import LearnableReweighting


def losses(at, scale_rec=1.0, scale_dis=1.0):
    """Losses whose gradients at `at` have the norms of their scales."""
    unit = torch.ones_like(at) / math.sqrt(at.numel())
    return scale_rec * (unit * at).sum(), scale_dis * (unit * at).sum()


def run(balance, steps, scale_rec=1.0, scale_dis=1.0):
    for _ in range(steps):
        at = torch.rand(2, 4, 3, 3, requires_grad=True)
        balance(*losses(at, scale_rec, scale_dis), at)
    return float(balance.weight)


@pytest.mark.parametrize(("rec", "dis"), [(1.0, 1.0), (1000.0, 1.0), (1.0, 1000.0)])
def test_the_first_batch_balances(rec, dis):
    assert run(LearnableReweighting(), 1, rec, dis) == pytest.approx(rec / dis, rel=1e-5)
    assert run(LearnableReweighting(ratio=0.5), 1, rec, dis) == pytest.approx(
        rec / dis / 2, rel=1e-5
    )


@given(st.floats(-3, 3), st.floats(-3, 3))
@settings(deadline=None, max_examples=20)
def test_it_follows_a_change_of_scale(before, after):
    balance = LearnableReweighting()
    run(balance, 1, 10**before)
    # At most 6 decades at 0.1 nat a step, and then it closes in by a tenth a step.
    weight = run(balance, 200, 10**after)
    assert weight == pytest.approx(10**after, rel=1e-3)


@pytest.mark.parametrize("optimized", ["sgd", "adam"])
@pytest.mark.parametrize(("rec", "dis"), [(1.0, 1.0), (1000.0, 1.0), (1.0, 1000.0)])
def test_gradients_of_a_network_in_training_end_up_balanced(rec, dis, optimized):
    """A rounded encoder, a decoder, a teacher; whatever units the losses come in."""
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(6, 5), nn.Linear(5, 4)
    teacher, answer = copy.deepcopy(encoder).requires_grad_(False), nn.Linear(6, 4)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    largest = max(rec, dis)
    optimizer = {
        "sgd": lambda: torch.optim.SGD(parameters, 0.02 / largest),
        "adam": lambda: torch.optim.Adam(parameters, 1e-3),
    }[optimized]()
    balance, ratios = LearnableReweighting(), []
    for step in range(400):
        x = torch.randn(32, 6)
        z = encoder(x)
        z = z + ((z * 8).round() / 8 - z).detach()  # noise of a grid, straight through
        reconstruction = rec * (decoder(z) - answer(x).detach()).abs().mean()
        distillation = dis * (z - teacher(x)).square().mean()
        loss = balance(reconstruction, distillation, z)
        if step >= 300:
            norms = [
                torch.autograd.grad(part, z, retain_graph=True)[0].norm()
                for part in (reconstruction, balance.weight * distillation)
            ]
            ratios.append(float(norms[1] / norms[0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert len(ratios) == 100
    assert 0.8 < torch.tensor(ratios).log().mean().exp() < 1.25
    assert all(0.4 < ratio < 2.5 for ratio in ratios)


def test_outliers_move_it_little():
    torch.manual_seed(0)
    balance, history = LearnableReweighting(), []
    for step in range(400):
        noise = math.exp(float(torch.randn(())) / 4)
        spike = 1e6 if step % 20 == 19 else 1.0
        run(balance, 1, 3.0 * noise * spike)
        history.append(float(balance.theta))
    # One batch in 20 is off by 14 nats: an average would be off by 0.7 nats, a median by 0.02.
    late = torch.tensor(history[100:])
    assert abs(float(late.mean()) - math.log(3)) < 0.15
    assert float((late - math.log(3)).abs().max()) < 0.5


def test_distillation_never_pulls_more_than_twice_as_hard_as_it_should():
    balance = LearnableReweighting(ratio=0.5)
    run(balance, 1, 1.0, 1e-3)  # a student next to its teacher
    for step in range(60):
        growing = min(1e-3 * 2**step, 1e3)
        # As hard as half of the reconstruction is asked for.
        assert run(balance, 1, 1.0, growing) * growing <= 2 * 0.5 * 1.0001
    assert run(balance, 200, 1.0, 1e3) == pytest.approx(0.5e-3, rel=1e-2)


@pytest.mark.parametrize("vanishing", ["rec", "dis"])
def test_a_loss_that_goes_to_zero_leaves_weights_finite_and_positive(vanishing):
    balance = LearnableReweighting()
    for step in range(400):
        scale = max(10.0 ** (-step / 8), 1e-30) if step < 300 else 0.0
        run(balance, 1, **{f"scale_{vanishing}": scale})
        assert 1 / 1.0001e4 <= float(balance.weight) <= 1.0001e4


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_a_gradient_without_a_magnitude_teaches_nothing(bad):
    balance = LearnableReweighting()
    run(balance, 2, bad)
    assert float(balance.weight) == 1.0
    assert not bool(balance.started)
    assert run(balance, 1, 5.0) == pytest.approx(5.0)  # at once: nothing was learned before
    assert run(balance, 3, 1.0, bad) == pytest.approx(5.0)


def test_the_loss_is_the_weighted_sum_and_the_weight_has_no_gradient():
    at = torch.rand(1, 2, 3, 3, requires_grad=True)
    balance = LearnableReweighting(ratio=2.0)
    rec, dis = losses(at, 3.0, 1.0)
    balance(rec, dis, at).backward()
    # 3 of the reconstruction and 2 times as much of the distillation
    assert at.grad is not None
    assert float(at.grad.norm()) == pytest.approx(9.0)
    assert list(balance.parameters()) == []


def test_it_compares_every_so_many_calls_and_only_in_training():
    balance = LearnableReweighting(every=3)
    run(balance, 1, 2.0)
    run(balance, 2, 100.0)
    assert float(balance.weight) == pytest.approx(2.0)
    run(balance, 1, 100.0)
    assert float(balance.theta) == pytest.approx(math.log(2.0) + 0.1)
    before = copy.deepcopy(balance.state_dict())
    run(balance.eval(), 9, 100.0)
    balance.train()
    with torch.no_grad():
        at = torch.ones(2)
        assert balance(at[0], at[1], at).item() == pytest.approx(1 + float(balance.weight))
    assert balance.state_dict() == before


def test_a_resumed_run_is_bit_equal():
    def trained(steps, balance):
        history = []
        for step in steps:
            run(balance, 1, math.exp(math.sin(step)))
            history.append(balance.theta.item())
        return history

    whole = trained(range(50), LearnableReweighting(every=4))
    first, second = LearnableReweighting(every=4), LearnableReweighting(every=4)
    head = trained(range(21), first)
    second.load_state_dict(first.state_dict())
    assert head + trained(range(21, 50), second) == whole


RANK = """
import sys, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
import fuseq.qat
from fuseq.qat.distillation import Features, SelfTeacher, feature_loss
from fuseq.qat.reweighting import LearnableReweighting
from tests.qat.networks import Residual, batches, prepared

rank = int(sys.argv[1])
dist.init_process_group("gloo", f"file://{sys.argv[2]}", rank=rank, world_size=2)
qat = prepared()
teacher, balance = SelfTeacher(qat, "mul"), LearnableReweighting()
student = DistributedDataParallel(Features(qat, "mul"))
optimizer = torch.optim.SGD(qat.parameters(), 1e-2)
for x in batches(6, seed=rank):
    output, value = student((1 + rank) * x)
    distillation = feature_loss(value, teacher((1 + rank) * x))
    loss = balance((output - x).square().mean(), distillation, value)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
fuseq.qat.finalize(qat)  # refuses ranks that differ
print(balance.theta.item(), balance.bound.item())
dist.destroy_process_group()
"""


def test_ranks_with_different_data_weigh_alike(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=300) for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), said[0][1] + said[1][1]
    assert said[0][0] == said[1][0]
    assert math.isfinite(float(said[0][0].split()[1]))


def test_a_loss_that_does_not_come_from_the_bottleneck_is_refused():
    at = torch.rand(3, requires_grad=True)
    elsewhere = torch.rand(3, requires_grad=True)
    with pytest.raises(ValueError, match="not computed from `at`"):
        LearnableReweighting()(at.sum(), elsewhere.sum(), at)


@pytest.mark.parametrize(
    "options", [{"ratio": 0.0}, {"rate": 0.0}, {"rate": 1.5}, {"largest": 0.5}, {"every": 0}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="out of range"):
        LearnableReweighting(**options)
