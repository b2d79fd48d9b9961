"""Properties every score fusion must have, over random scores."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_lib import fusion

scores = st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)), min_size=1, max_size=20)


def _branches(pairs: list[tuple[float, float]]) -> tuple[torch.Tensor, torch.Tensor]:
    table = torch.tensor(pairs, dtype=torch.float64)
    return table[:, 0], table[:, 1]


@settings(deadline=None, max_examples=60)
@given(scores)
def test_bounds_and_symmetry(pairs: list[tuple[float, float]]) -> None:
    a, b = _branches(pairs)
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    assert (fusion.harmonic(a, b) <= low).all()
    assert (fusion.harmonic(a, b) >= low / 2).all()
    assert (fusion.harmonic_mean(a, b) >= low * (1 - 1e-12)).all()
    assert (fusion.harmonic_mean(a, b) <= fusion.mean(a, b) * (1 + 1e-12)).all()
    assert (fusion.noisy_or(a, b) >= high - 1e-12).all()
    for mode in ("harmonic", "harmonic-mean", "max", "mean", "min", "product", "noisy-or", "weighted"):
        assert torch.equal(fusion.fuse(a, b, mode=mode), fusion.fuse(b, a, mode=mode)), mode


@settings(deadline=None, max_examples=60)
@given(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.01, 0.5))
def test_strictly_increasing(a: float, b: float, step: float) -> None:
    x, y, more = (torch.tensor(v, dtype=torch.float64) for v in (a, b, a + step))
    for mode in ("harmonic", "harmonic-mean", "mean", "product", "weighted"):
        assert fusion.fuse(more, y, mode=mode) > fusion.fuse(x, y, mode=mode), mode


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(-1000, 1000), min_size=2, max_size=30),
    st.lists(st.integers(-2000, 2000), min_size=2, max_size=30),
)
def test_calibration_never_swaps_two_scores(reference: list[int], queries: list[int]) -> None:
    normal = torch.tensor(reference, dtype=torch.float64) / 7
    points = torch.tensor(sorted(set(queries)), dtype=torch.float64) / 7
    for method in fusion.CALIBRATIONS:
        placed = fusion.calibrate(normal, method)(points)
        assert (placed.diff() >= 0).all(), method
        assert ((placed >= 0) & (placed <= 1)).all(), method
