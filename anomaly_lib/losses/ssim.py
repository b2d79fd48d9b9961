"""Structural similarity of images."""

import torch
from torch import Tensor

from anomaly_lib.ops.smooth import gaussian_blur


def ssim(first: Tensor, second: Tensor, *, window: int = 11, sigma: float = 1.5, data_range: float = 1.0) -> Tensor:
    """The SSIM map [B, C, H, W] of two image batches: Gaussian window, reflected borders, each channel by itself."""
    # All five moments share one blur.
    moments = torch.stack([first, second, first * first, second * second, first * second])
    mean_a, mean_b, square_a, square_b, product = gaussian_blur(moments, sigma, radius=window // 2).unbind(0)
    variance_a, variance_b = square_a - mean_a**2, square_b - mean_b**2
    covariance = product - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance * (2 * covariance + c2) / (variance_a + variance_b + c2)


def ssim_loss(
    first: Tensor, second: Tensor, *, window: int = 11, sigma: float = 1.5, data_range: float = 1.0
) -> Tensor:
    """``mean(1 - SSIM)``."""
    return (1 - ssim(first, second, window=window, sigma=sigma, data_range=data_range)).mean()
