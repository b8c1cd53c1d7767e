"""Losses against values computed by hand, their gradients, and their algebra."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuseq.qat.losses import (
    FidelityLoss,
    charbonnier,
    confidence,
    confidence_weighted_l1,
    dct,
    dct_l1,
    dct_matrix,
)

sizes = st.integers(1, 17)
seeds = st.integers(0, 2**31)


def images(seed, height, width, count=2):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.rand(2, 3, height, width, dtype=torch.float64, generator=generator)
        for _ in range(count)
    ]


def test_charbonnier_by_hand():
    a, b = torch.tensor([0.0, 4e-3]), torch.tensor([0.0, 1e-3])
    # sqrt(0 + 1e-6) and sqrt(9e-6 + 1e-6)
    assert charbonnier(a, b).item() == pytest.approx((1e-3 + math.sqrt(1e-5)) / 2)
    assert charbonnier(a, a, eps=0.5).item() == 0.5


def test_dct_by_hand():
    # The 2 x 2 transform is the Hadamard matrix [[1, 1], [1, -1]] / 2 on both sides.
    a = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    torch.testing.assert_close(dct(a), torch.tensor([[5.5, -1.5], [-2.5, 0.5]]))
    assert dct_l1(a, torch.zeros(2, 2)).item() == pytest.approx((5.5 + 1.5 + 2.5 + 0.5) / 4)


def test_a_cosine_is_one_coefficient():
    n = torch.arange(9, dtype=torch.float64)
    wave = torch.cos(math.pi * (2 * n + 1) * 4 / 18).expand(7, 9)
    spectrum = dct(wave)
    # sqrt(1/7) * 7 along the constant rows, sqrt(2/9) * 9/2 along the wave
    assert spectrum[0, 4].item() == pytest.approx(math.sqrt(7) * math.sqrt(4.5))
    spectrum[0, 4] = 0
    assert spectrum.abs().max() < 1e-13


def test_confidence_by_hand():
    target = torch.zeros(1, 3, 1, 3)
    teacher = torch.tensor([0.0, 0.2, 3.0]).expand(1, 3, 1, 3).clone()
    teacher[:, 0, :, 1], teacher[:, 1, :, 1] = 0.6, 0.0  # channels of pixel 1: mean 0.8 / 3
    weight = confidence(teacher, target, gamma=3.0, w_min=0.1, w_max=0.9)
    torch.testing.assert_close(weight.flatten(), torch.tensor([0.9, math.exp(-0.8), 0.1]))
    student = teacher + torch.tensor([1.0, 2.0, -4.0])
    loss = confidence_weighted_l1(student, teacher, target, gamma=3.0, w_min=0.1, w_max=0.9)
    assert loss.item() == pytest.approx((0.9 + 2 * math.exp(-0.8) + 0.4) / 3)


def test_fidelity_is_the_weighted_sum():
    student, target, teacher = images(0, 5, 8, 3)
    loss = FidelityLoss(dct=0.3, distillation=0.7, eps=0.01, gamma=2.0, w_min=0.2, w_max=0.8)
    followed = confidence_weighted_l1(student, teacher, target, gamma=2.0, w_min=0.2, w_max=0.8)
    expected = charbonnier(student, target, 0.01) + 0.3 * dct_l1(student, target) + 0.7 * followed
    torch.testing.assert_close(loss(student, target, teacher), expected)


@given(seeds, sizes, sizes)
@settings(deadline=None, max_examples=30)
def test_the_transform_keeps_energy_and_inner_products(seed, height, width):
    a, b = images(seed, height, width)
    torch.testing.assert_close((dct(a) * dct(b)).sum(), (a * b).sum())
    torch.testing.assert_close(dct(a).square().sum((-2, -1)), a.square().sum((-2, -1)))


@pytest.mark.parametrize("size", [1, 2, 8, 9, 192, 1000])
def test_the_matrix_is_orthogonal(size):
    matrix = dct_matrix(size, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))
    # Each cosine of the float32 matrix is right to a few steps of float32, at any size.
    single = dct_matrix(size, torch.zeros(()))
    assert (single - matrix).abs().max() <= 8 * 2**-23 * math.sqrt(2 / size)


@given(seeds, sizes, sizes, st.floats(0.1, 10.0))
@settings(deadline=None, max_examples=30)
def test_distances_are_zero_at_equality_symmetric_and_grow(seed, height, width, factor):
    a, b = images(seed, height, width)
    for distance in (lambda x, y: charbonnier(x, y) - 1e-3, dct_l1):
        assert abs(distance(a, a).item()) < 1e-15
        assert distance(a, b).item() == distance(b, a).item() > 0
        assert distance(a, a + (1 + factor) * (b - a)) > distance(a, b)


@given(seeds, sizes, sizes, st.floats(0.0, 30.0))
@settings(deadline=None, max_examples=30)
def test_confidence_falls_with_the_error_of_the_teacher(seed, height, width, gamma):
    student, target, teacher = images(seed, height, width, 3)
    arguments = {"gamma": gamma, "w_min": 0.1, "w_max": 1.0}
    better = confidence(target + (teacher - target) / 2, target, **arguments)
    worse = confidence(teacher, target, **arguments)
    assert worse.shape == (2, 1, height, width)
    assert (better >= worse).all()
    assert (worse >= 0.1).all()
    assert (worse <= 1.0).all()
    loss = confidence_weighted_l1(student, teacher, target, **arguments)
    assert 0 < loss <= (student - teacher).abs().mean()
    assert confidence_weighted_l1(teacher, teacher, target, **arguments) == 0


@pytest.mark.parametrize("loss", [charbonnier, dct_l1])
def test_gradients_of_distances(loss):
    a, b = (x[:1, :1].requires_grad_() for x in images(1, 4, 5))
    assert torch.autograd.gradcheck(loss, (a, b))


def test_gradients_reach_the_student_only():
    student, target, teacher = (x.requires_grad_() for x in images(2, 4, 5, 3))
    confidence_weighted_l1(student, teacher, target).backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert target.grad is None
    fixed = (teacher.detach(), target.detach())
    assert torch.autograd.gradcheck(lambda x: confidence_weighted_l1(x, *fixed), (student,))
    assert torch.autograd.gradcheck(lambda x: FidelityLoss()(x, fixed[1], fixed[0]), (student,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_float32_under_autocast(dtype):
    student, target, teacher = (x.to(dtype) for x in images(3, 24, 24, 3))
    expected = FidelityLoss()(student.float(), target.float(), teacher.float())
    with torch.autocast("cpu", dtype):
        loss = FidelityLoss()(student, target, teacher)
    assert loss.dtype == torch.float32
    assert loss == expected


@pytest.mark.parametrize("loss", [charbonnier, dct_l1])
def test_a_broadcast_is_refused(loss):
    with pytest.raises(ValueError, match=r"shapes differ: \(2, 3, 4, 4\) and \(2, 1, 4, 4\)"):
        loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match="shapes differ"):
        confidence_weighted_l1(*(torch.zeros(2, c, 4, 4) for c in (3, 3, 1)))
