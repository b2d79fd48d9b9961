import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur as torchvision_blur

from anomaly_lib.ops import gaussian_blur, gaussian_kernel, upsample_and_smooth, upsample_maps


@pytest.mark.parametrize(
    ("border", "scipy_mode"),
    [("symmetric", "reflect"), ("reflect", "mirror"), ("replicate", "nearest"), ("constant", "constant")],
)
@pytest.mark.parametrize("shape", [(31, 95), (8, 12), (64, 40)])
@pytest.mark.parametrize("sigma", [0.7, 4.0])
def test_equals_scipy_gaussian_filter(border, scipy_mode, shape, sigma):
    maps = torch.rand(3, *shape, dtype=torch.float64)
    want = np.stack([ndimage.gaussian_filter(m, sigma, mode=scipy_mode) for m in maps.numpy()])
    torch.testing.assert_close(gaussian_blur(maps, sigma, border=border), torch.from_numpy(want), rtol=0, atol=1e-9)


def test_equals_torchvision_blur():
    maps = torch.rand(2, 1, 37, 52)
    want = torchvision_blur(maps, kernel_size=[33, 33], sigma=[4.0, 4.0])
    torch.testing.assert_close(gaussian_blur(maps, 4.0), want, rtol=0, atol=3e-6)


def test_equals_the_dense_kernel():
    maps = torch.rand(2, 1, 40, 60)
    kernel = gaussian_kernel(4.0)
    assert len(kernel) == 33
    dense = F.conv2d(F.pad(maps, (16, 16, 16, 16), mode="reflect"), torch.outer(kernel, kernel)[None, None])
    torch.testing.assert_close(gaussian_blur(maps, 4.0), dense, rtol=0, atol=3e-6)


def test_constant_map_and_integer_map_and_zero_sigma():
    torch.testing.assert_close(gaussian_blur(torch.full((1, 5, 7), 3.0), 4.0), torch.full((1, 5, 7), 3.0))
    assert gaussian_blur(torch.eye(8, dtype=torch.long), 1.0).sum() == pytest.approx(8, abs=0.5)
    maps = torch.rand(1, 4, 4)
    assert gaussian_blur(maps, 0.0) is maps


def test_upsample_keeps_rank_and_matches_interpolate():
    maps = torch.rand(2, 4, 12)
    want = F.interpolate(maps[:, None], size=(31, 95), mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample_maps(maps, (31, 95)), want[:, 0])
    torch.testing.assert_close(upsample_maps(maps[:, None], (31, 95)), want)
    torch.testing.assert_close(upsample_and_smooth(maps, (31, 95), sigma=4.0), gaussian_blur(want[:, 0], 4.0))
    nearest = upsample_maps(maps, (8, 24), mode="nearest")
    torch.testing.assert_close(nearest, maps.repeat_interleave(2, 1).repeat_interleave(2, 2))
