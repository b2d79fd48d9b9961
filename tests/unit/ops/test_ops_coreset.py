import itertools
import time

import pytest
import torch

from anomaly_lib.ops import coreset_of_chunks, greedy_coreset, nearest_neighbours, projection_size, sparse_projection


def plain_greedy(points: torch.Tensor, count: int, start: int = 0) -> torch.Tensor:
    """The textbook loop; ties to the lowest index, picked rows excluded."""
    distance = (points - points[start]).square().sum(1)
    picked = [start]
    distance[start] = -torch.inf
    while len(picked) < count:
        pick = int(distance.argmax())
        picked.append(pick)
        distance = torch.minimum(distance, (points - points[pick]).square().sum(1))
        distance[pick] = -torch.inf
    return torch.tensor(picked)


def random_case(seed: int) -> tuple[torch.Tensor, int, int, int]:
    """Continuous points, lattice points (many equal distances) and duplicated points in turn."""
    g = torch.Generator().manual_seed(seed)
    n, d = (int(torch.randint(low, high, (1,), generator=g)) for low, high in ((5, 300), (1, 20)))
    if seed % 3 == 0:
        points = torch.randn(n, d, generator=g) * 10
    elif seed % 3 == 1:
        points = torch.randint(0, 3, (n, d), generator=g).float()
    else:
        points = torch.randn(n // 3 + 1, d, generator=g)[torch.randint(0, n // 3 + 1, (n,), generator=g)] + 50
    count, start, block = (int(torch.randint(low, n, (1,), generator=g)) for low in (1, 0, 2))
    return points, count, start, block


@pytest.mark.parametrize("seed", range(24))
def test_order_equals_the_plain_loop(seed):
    points, count, start, block = random_case(seed)
    got = greedy_coreset(points, count, start=start, block_size=block)
    assert torch.equal(got, plain_greedy(points, count, start))


def test_all_rows_equal_gives_distinct_rows_in_order():
    assert greedy_coreset(torch.ones(9, 3), 5, start=4, block_size=3).tolist() == [4, 0, 1, 2, 3]


def test_a_thousand_picks_equal_the_plain_loop():
    points = torch.randn(4000, 8) @ torch.randn(8, 64) + 0.05 * torch.randn(4000, 64)
    assert torch.equal(greedy_coreset(points, 1000, start=7), plain_greedy(points, 1000, 7))


def test_impossible_count_and_progress():
    with pytest.raises(ValueError, match="coreset of 11 out of 10"):
        greedy_coreset(torch.randn(10, 2), 11)
    seen: list[tuple[int, int]] = []
    greedy_coreset(torch.randn(500, 4), 100, block_size=32, progress=lambda done, wanted: seen.append((done, wanted)))
    assert seen[-1] == (100, 100)
    assert all(a < b for (a, _), (b, _) in itertools.pairwise(seen))


@pytest.mark.parametrize("size", [{"count": 60}, {"ratio": 1 / 15}])
def test_chunks_cover_the_whole_set(size):
    points = torch.randn(900, 6)
    rows, places = coreset_of_chunks(points.split(200), **size)
    assert torch.equal(rows, points[places])
    assert len(places.unique()) == 60
    radius = nearest_neighbours(points, rows)[0].max()
    best = nearest_neighbours(points, points[greedy_coreset(points, 60)])[0].max()
    assert radius <= 2 * best
    assert torch.equal(coreset_of_chunks([points], **size)[1], greedy_coreset(points, 60))


def test_chunks_refuse_impossible_sizes():
    with pytest.raises(ValueError, match="not possible"):
        coreset_of_chunks([torch.randn(3, 2)], count=4)
    with pytest.raises(ValueError, match="not possible"):
        coreset_of_chunks([torch.randn(3, 2)], ratio=0.1)
    with pytest.raises(ValueError, match="either"):
        coreset_of_chunks([torch.randn(3, 2)])


def test_projection_keeps_distances_and_known_sizes():
    assert projection_size(157_000) == 295
    assert projection_size(784_000) == 335
    g = torch.Generator().manual_seed(1)
    matrix = sparse_projection(512, 335, generator=g)
    assert (matrix != 0).float().mean().item() == pytest.approx(512**-0.5, rel=0.05)
    points = torch.randn(60, 512, generator=g)
    ratio = torch.pdist(points @ matrix) / torch.pdist(points)
    assert ratio.mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.slow
def test_eight_times_faster_than_the_plain_loop():
    points = torch.randn(40_000, 128)
    begin = time.perf_counter()
    fast = greedy_coreset(points, 4000)
    middle = time.perf_counter()
    slow = plain_greedy(points, 4000)
    end = time.perf_counter()
    assert torch.equal(fast, slow)
    assert (end - middle) / (middle - begin) >= 8
