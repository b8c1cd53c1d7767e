r"""Losses of the fidelity stage of INT8 super-resolution (arXiv 2604.20291, stages 2 and 3).

With student y, target t, teacher k, pixels p, channels c and the orthonormal 2-D DCT-II D:

    Charbonnier    mean sqrt((y - t)^2 + eps^2)
    DCT            mean |D(y) - D(t)|
    distillation   mean_p w(p) |y(p) - k(p)|,   w(p) = clip(exp(-gamma e(p)), w_min, w_max),
                                                e(p) = mean_c |k_c(p) - t_c(p)|

The weight trusts the teacher where it is right. The paper writes the DCT term as a sum; a mean
makes its weight independent of the patch. D is that of the whole image: the paper speaks of D(y)
and of no blocks, and a whole image needs no padding at odd sizes.

Every loss is computed in float32 (float64 stays float64), also under autocast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def charbonnier(a: Tensor, b: Tensor, eps: float = 1e-3) -> Tensor:
    """Smooth L1 distance, `mean sqrt((a - b)^2 + eps^2)` (Charbonnier et al. 1994; 2604.20291).

    Args:
        a: any shape, values of the order of 1.
        b: the same shape.
        eps: below this difference the loss is quadratic; equal images give `eps`, not zero.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ.
    """
    return (_difference(a, b).square() + eps**2).sqrt().mean()


def dct_l1(a: Tensor, b: Tensor) -> Tensor:
    """Distance of spectra, `mean |D(a) - D(b)|` (2604.20291), over the last two dimensions.

    Args:
        a: `[..., H, W]`.
        b: the same shape.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ.
    """
    return dct(_difference(a, b)).abs().mean()  # D is linear


def confidence_weighted_l1(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    gamma: float = 10.0,
    w_min: float = 0.1,
    w_max: float = 1.0,
) -> Tensor:
    """Distillation that follows the teacher where it is right (2604.20291).

    `mean_p w(p) |student(p) - teacher(p)|` with the weight of `confidence`. Neither the teacher nor
    the weight receives a gradient. `gamma`, `w_min` and `w_max` are ours: the sources name no
    values.

    Args:
        student: `[..., C, H, W]`, in [0, 1].
        teacher: the same shape.
        target: the same shape.
        gamma: as `confidence`.
        w_min: as `confidence`.
        w_max: as `confidence`.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ.
    """
    weight = confidence(teacher, target, gamma=gamma, w_min=w_min, w_max=w_max)
    return (weight * _difference(student, teacher.detach()).abs()).mean()


def confidence(
    teacher: Tensor, target: Tensor, *, gamma: float, w_min: float, w_max: float
) -> Tensor:
    """Weight of each pixel, `clip(exp(-gamma e), w_min, w_max)`, without a gradient.

    Args:
        teacher: `[..., C, H, W]`, in [0, 1].
        target: the same shape.
        gamma: how fast trust falls with the teacher's error; at least 0.
        w_min: least weight, in [0, w_max].
        w_max: largest weight; above 1 it has no effect.

    Returns:
        `[..., 1, H, W]`.

    Raises:
        ValueError: shapes differ.
    """
    error = _difference(teacher, target).detach().abs().mean(-3, keepdim=True)
    return torch.exp(-gamma * error).clamp(w_min, w_max)


@dataclass(frozen=True)
class FidelityLoss:
    """Charbonnier, DCT and confidence-weighted distillation together (2604.20291, stage 2).

    All three are means of absolute differences in the image's units, so weights of 1 give them a
    comparable say. The weights are ours: the sources name no values.

    Attributes:
        dct: weight of `dct_l1`.
        distillation: weight of `confidence_weighted_l1`.
        eps: of `charbonnier`.
        gamma: of `confidence_weighted_l1`.
        w_min: of `confidence_weighted_l1`.
        w_max: of `confidence_weighted_l1`.
    """

    dct: float = 1.0
    distillation: float = 1.0
    eps: float = 1e-3
    gamma: float = 10.0
    w_min: float = 0.1
    w_max: float = 1.0

    def __call__(self, student: Tensor, target: Tensor, teacher: Tensor) -> Tensor:
        """A scalar, from three tensors `[..., C, H, W]` in [0, 1].

        Raises:
            ValueError: shapes differ.
        """
        followed = confidence_weighted_l1(
            student, teacher, target, gamma=self.gamma, w_min=self.w_min, w_max=self.w_max
        )
        return (
            charbonnier(student, target, self.eps)
            + self.dct * dct_l1(student, target)
            + self.distillation * followed
        )


def dct(image: Tensor) -> Tensor:
    """Orthonormal 2-D DCT-II of the last two dimensions: it keeps the sum of squares.

    Args:
        image: `[..., H, W]`, float32 or float64.
    """
    rows, columns = (dct_matrix(n, image) for n in image.shape[-2:])
    with torch.autocast(image.device.type, enabled=False):
        return rows @ image @ columns.T


def dct_matrix(size: int, like: Tensor) -> Tensor:
    """`M[k, n] = sqrt((2 - [k = 0]) / N) cos(pi (2 n + 1) k / (2 N))`, on a tensor's device.

    Built at each call: one cosine an element is little beside the products it is used in.

    Args:
        size: N.
        like: gives device and dtype.

    Returns:
        `[N, N]`, orthogonal.
    """
    k = torch.arange(size, device=like.device)
    # Reduced as integers: in float32 an angle of many turns has lost its digits.
    quarters = (2 * k + 1) * k[:, None] % (4 * size)
    matrix = torch.cos(quarters.to(like.dtype) * (math.pi / (2 * size))) * math.sqrt(2 / size)
    matrix[0] = math.sqrt(1 / size)
    return matrix


def _difference(a: Tensor, b: Tensor) -> Tensor:
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    full = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return a.to(full) - b.to(full)
