import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_lib.ops import gaussian_blur, greedy_coreset, nearest_neighbours, window_partition, window_reverse

sizes = st.integers(1, 13)
quick = settings(max_examples=25, deadline=None)


@quick
@given(sizes, sizes, st.integers(1, 5), st.integers(1, 5))
def test_windows_round_trip(height, width, rows, columns):
    grid = torch.randn(2, height, width, 3)
    assert torch.equal(window_reverse(window_partition(grid, (rows, columns)), (height, width)), grid)


@quick
@given(sizes, sizes, st.floats(0.1, 6), st.sampled_from(["reflect", "symmetric", "replicate"]))
def test_blur_is_an_average(height, width, sigma, border):
    maps = torch.rand(2, height, width)
    blurred = gaussian_blur(maps, sigma, border=border)
    assert (blurred >= maps.amin((1, 2), keepdim=True) - 1e-5).all()
    assert (blurred <= maps.amax((1, 2), keepdim=True) + 1e-5).all()
    flat = torch.full((1, height, width), 2.5)
    torch.testing.assert_close(gaussian_blur(flat, sigma, border=border), flat)


@quick
@given(st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=2), min_size=2, max_size=40), st.integers(0, 10_000))
def test_coreset_is_a_subset_and_its_radius_shrinks(points, seed):
    rows = torch.tensor(points, dtype=torch.float32)
    start = seed % len(rows)
    order = greedy_coreset(rows, len(rows), start=start, block_size=4)
    assert sorted(order.tolist()) == list(range(len(rows)))
    radii = [nearest_neighbours(rows, rows[order[:m]])[0].max().item() for m in range(1, len(rows) + 1)]
    assert all(a >= b for a, b in itertools.pairwise(radii))
    assert radii[-1] == 0
