r"""What QATIE is trained on, by its public training code: PSNR, SSIM, and weight for outliers.

With output y, target t, d = y - t, and Y the luma of ITU-R BT.601, Y = (65.481 R + 128.553 G +
24.966 B + 16) / 255:

    PSNR       (50 - 20 log10(1 / sqrt(mean (Y_y - Y_t)^2 + 1e-8))) / 100, an image each
    SSIM       1 - SSIM(y, t), Gaussian window 11 x 11, sigma 1.5, without padding
    outliers   mean |d| tanh(|d - mean d| sqrt(2) / std d), mean and std of an image's channel
    loss       2 PSNR + 100 SSIM + outliers

The weights are the defaults of that code. No gradient flows through the tanh: it is a weight.
"""

import torch
from torch import Tensor

PSNR_WEIGHT, SSIM_WEIGHT, OUTLIER_WEIGHT = 2.0, 100.0, 1.0
LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)  # the constant 16 cancels in a difference
WINDOW, SIGMA = 11, 1.5


def enhancement_loss(enhanced: Tensor, target: Tensor) -> Tensor:
    """Return the weighted sum, a scalar, of images ``(N, 3, H, W)`` in 0..1, 11 or more wide."""
    return (
        PSNR_WEIGHT * psnr_loss(enhanced, target)
        + SSIM_WEIGHT * (1 - ssim(enhanced, target))
        + OUTLIER_WEIGHT * outlier_loss(enhanced, target)
    )


def psnr_loss(enhanced: Tensor, target: Tensor) -> Tensor:
    """Return how far the PSNR of the luma is from 50 dB, in hundreds of dB."""
    luma = torch.einsum("nchw,c->nhw", enhanced - target, enhanced.new_tensor(LUMA))
    psnr = -10 * torch.log10(luma.square().mean((1, 2)) + 1e-8)
    return (50 - psnr.mean()) / 100


def ssim(enhanced: Tensor, target: Tensor) -> Tensor:
    """Return the mean structural similarity (Wang et al. 2004), differentiable."""
    maps = enhanced, target, enhanced.square(), target.square(), enhanced * target
    rows, columns = (_blurring(size, enhanced) for size in enhanced.shape[-2:])
    blurred = rows @ torch.stack(maps) @ columns.T  # as matrices: a small convolution is slow
    mean_y, mean_t, square_y, square_t, product = blurred.unbind()
    variance_y, variance_t = square_y - mean_y.square(), square_t - mean_t.square()
    covariance = product - mean_y * mean_t
    luminance = (2 * mean_y * mean_t + 0.01**2) / (mean_y.square() + mean_t.square() + 0.01**2)
    structure = (2 * covariance + 0.03**2) / (variance_y + variance_t + 0.03**2)
    return (luminance * structure).mean()


def _blurring(size: int, like: Tensor) -> Tensor:
    """Return the matrix ``(size - 10, size)`` that slides the window along ``size`` pixels."""
    place = torch.arange(size, device=like.device, dtype=like.dtype)
    distance = place - place[: size - WINDOW + 1, None] - WINDOW // 2
    window = torch.exp(-distance.square() / (2 * SIGMA**2)) * (distance.abs() <= WINDOW // 2)
    matrix: Tensor = window / window.sum(1, keepdim=True)
    return matrix


def outlier_loss(enhanced: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute error in which errors far from the mean error count most."""
    error = enhanced - target
    spread = error.std((2, 3), keepdim=True) / 2**0.5 + 1e-6
    weight = torch.tanh((error - error.mean((2, 3), keepdim=True)).abs() / spread).detach()
    return (error.abs() * weight).mean()
