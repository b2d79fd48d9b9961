"""What must hold for any scores: bounds, invariances, symmetry."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from anomaly_lib import metrics

FEW = settings(deadline=None, max_examples=40)
GRID = st.integers(-8, 8).map(float)  # a coarse grid makes ties common
CASES = st.integers(2, 40).flatmap(
    lambda n: st.tuples(hnp.arrays(np.float64, n, elements=GRID), hnp.arrays(np.bool_, n)).filter(
        lambda case: bool(case[1].any() and not case[1].all())
    )
)
STACKS = st.tuples(st.integers(1, 3), st.integers(2, 7)).flatmap(
    lambda shape: st.tuples(
        hnp.arrays(np.float32, (shape[0], shape[1], shape[1]), elements=GRID),
        hnp.arrays(np.bool_, (shape[0], shape[1], shape[1])),
    ).filter(lambda case: bool(case[1].any() and not case[1].all()))
)


@FEW
@given(CASES)
def test_image_metrics_are_rank_statistics(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = case
    value = metrics.auroc(scores, labels)
    wins = scores[labels][:, None] - scores[~labels][None]
    assert value == pytest.approx(np.mean((wins > 0) + 0.5 * (wins == 0)))
    assert metrics.auroc(-scores, labels) == pytest.approx(1 - value)
    assert metrics.auroc(scores, ~labels) == pytest.approx(1 - value)
    for metric in (metrics.auroc, metrics.average_precision, metrics.f1_max):
        assert 0 <= metric(scores, labels) <= 1
        assert metric(scores, labels) == pytest.approx(metric(np.exp(scores / 4), labels))  # monotone rescaling
        shuffled = np.random.default_rng(0).permutation(scores.size)
        assert metric(scores, labels) == pytest.approx(metric(scores[shuffled], labels[shuffled]))
    assert metrics.f1_max(scores, labels) >= 2 * labels.mean() / (1 + labels.mean()) - 1e-12  # flagging everything


@FEW
@given(STACKS, st.sampled_from([0.05, 0.3, 1.0]))
def test_pixel_metrics_hold_for_any_maps(case: tuple[np.ndarray, np.ndarray], limit: float) -> None:
    maps, masks = case
    found = metrics.pixel_metrics(maps, masks, (limit,))
    assert all(0 <= value <= 1 + 1e-12 for name, value in found.items() if name != "f1_max_threshold")
    assert found["auroc"] == pytest.approx(metrics.auroc(maps.ravel(), masks.ravel()))
    assert found["ap"] == pytest.approx(metrics.average_precision(maps.ravel(), masks.ravel()))
    rescaled = metrics.pixel_metrics(np.arctan(maps), masks, (limit,))
    assert [v for k, v in rescaled.items() if k != "f1_max_threshold"] == pytest.approx(
        [v for k, v in found.items() if k != "f1_max_threshold"]
    )
    # With the mask itself added strongly enough the map becomes perfect.
    assert metrics.aupro(maps + 100 * masks, masks, limit) == pytest.approx(1.0)


@FEW
@given(STACKS, st.sampled_from([10, 11, 13]))
def test_histogram_bounds_are_certain(case: tuple[np.ndarray, np.ndarray], bits: int) -> None:
    maps, masks = case
    maps = maps + np.linspace(0, 1, maps.size, dtype=np.float32).reshape(maps.shape)
    histogram = metrics.PixelHistogram(bits=bits)
    histogram.update(maps, masks)
    exact, found = metrics.pixel_metrics(maps, masks, (0.2,)), histogram.metrics((0.2,))
    for name, bound in histogram.error_bounds((0.2,)).items():
        assert abs(exact[name] - found[name]) <= bound + 1e-9, name
