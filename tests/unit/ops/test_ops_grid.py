import math

import pytest
import torch
from torch.nn import functional as F

from anomaly_lib.ops import (
    grid_to_rows,
    neighbourhood_mean,
    perlin_noise,
    random_perlin,
    stack_layers,
    window_partition,
    window_reverse,
)


def test_windows_by_loops():
    grid = torch.arange(2 * 5 * 7 * 3.0).reshape(2, 5, 7, 3)
    windows = window_partition(grid, (2, 3))
    padded = F.pad(grid, (0, 0, 0, 2, 0, 1))
    want = [padded[b, r : r + 2, c : c + 3] for b in range(2) for r in range(0, 6, 2) for c in range(0, 9, 3)]
    assert torch.equal(windows, torch.stack(want))
    assert torch.equal(window_reverse(windows, (5, 7)), grid)


def perlin_by_loops(size, exponents, angles):
    height, width = size
    padded = [1 << max(side - 1, 0).bit_length() for side in size]
    noise = torch.zeros(size)
    fade = lambda t: 6 * t**5 - 15 * t**4 + 10 * t**3  # noqa: E731
    for r in range(height):
        for c in range(width):
            y, x = r * 2 ** exponents[0] / padded[0], c * 2 ** exponents[1] / padded[1]
            i, j = int(y), int(x)
            total = 0.0
            for di in (0, 1):
                for dj in (0, 1):
                    angle = angles[i + di, j + dj].item()
                    dot = math.cos(angle) * (y - i - di) + math.sin(angle) * (x - j - dj)
                    weight = (fade(y - i) if di else 1 - fade(y - i)) * (fade(x - j) if dj else 1 - fade(x - j))
                    total += weight * dot
            noise[r, c] = total * math.sqrt(2)
    return noise


@pytest.mark.parametrize("exponents", [(0, 0), (2, 1), (4, 5), (5, 3)])
def test_perlin_equals_the_loop(exponents):
    angles = 2 * math.pi * torch.rand(1, 33, 33)
    got = perlin_noise((20, 30), torch.tensor([exponents]), angles=angles)
    torch.testing.assert_close(got[0], perlin_by_loops((20, 30), exponents, angles[0]), rtol=0, atol=1e-5)


def test_perlin_angles_cover_the_finest_lattice_whatever_the_exponents_are():
    coarse = torch.tensor([[0, 1]])
    angles = 2 * math.pi * torch.rand(1, 9, 17)  # of 8 x 16 pixels: periods up to 2^3 and 2^4
    got = perlin_noise((8, 16), coarse, angles=angles)
    torch.testing.assert_close(got[0], perlin_by_loops((8, 16), (0, 1), angles[0]), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"angles \[1, 9, 17\] expected for images of 8x16, got \[1, 2, 3\]"):
        perlin_noise((8, 16), coarse, angles=angles[:, :2, :3])


def test_random_perlin_is_repeatable_and_varied():
    first = random_perlin((31, 95), 6, generator=torch.Generator().manual_seed(3))
    again = random_perlin((31, 95), 6, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, again)
    assert first.shape == (6, 31, 95)
    assert (first.std((1, 2)) > 0.05).all()
    assert first.abs().max() <= 1.5
    assert not torch.equal(first[0], first[1])


def test_perlin_small_sides_are_capped_not_failing():
    assert random_perlin((8, 16), 20).isfinite().all()
    with pytest.raises(ValueError, match="exponents above"):
        perlin_noise((8, 16), torch.tensor([[5, 0]]))


def test_neighbourhood_mean_by_loops():
    features = torch.randn(1, 2, 4, 5)
    padded = F.pad(features, (1, 1, 1, 1))
    want = torch.stack([padded[0, :, r : r + 3, c : c + 3] for r in range(4) for c in range(5)])
    torch.testing.assert_close(grid_to_rows(neighbourhood_mean(features)), want.mean((2, 3)))


def test_stack_layers():
    a, b = torch.randn(2, 3, 8, 6), torch.randn(2, 5, 4, 3)
    stacked = stack_layers([a, b])
    assert torch.equal(stacked[:, :3], a)
    torch.testing.assert_close(stacked[:, 3:], F.interpolate(b, size=(8, 6), mode="bilinear", align_corners=False))
    assert torch.equal(stack_layers([a, b], "nearest")[:, 3:], b.repeat_interleave(2, 2).repeat_interleave(2, 3))
