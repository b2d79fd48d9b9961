"""Intervals of pixel metrics: the same as scoring every resample of images from its pixels."""

import numpy as np
import pytest

from anomaly_lib import metrics
from anomaly_lib.errors import UserError
from anomaly_lib.metrics.bootstrap import draw_rows

LIMITS = (0.3, 0.05)
NAMES = ("auroc", "ap", "f1_max", "aupro", "aupro_0.05")


def images(count: int, size: int, *, levels: int | None, seed: int = 0) -> tuple[list[np.ndarray], list]:
    """Maps and masks of different sizes, a third without defects; `levels` rounds the scores so that many are equal."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for i in range(count):
        height, width = size + i % 3, size - i % 2
        mask = np.zeros((height, width), bool)
        if i % 3:
            mask[2:5, 3 : 4 + i % 4] = True
            mask[size - 3 :, :2] = i % 2 == 0
        score = rng.normal(1.3 * mask + 0.3 * rng.normal(), 1.0)
        maps.append(score if levels is None else np.round(score * levels) / levels)
        masks.append(mask if i % 3 else None)
    return maps, masks


def by_loop(maps: list[np.ndarray], masks: list, *, repeats: int, seed: int) -> dict[str, tuple[float, float]]:
    groups = np.array([mask is not None for mask in masks])
    found = [
        metrics.pixel_metrics([maps[i] for i in rows], [masks[i] for i in rows], LIMITS)
        for rows in draw_rows(groups, repeats, seed)
    ]
    return {name: tuple(np.quantile([one[name] for one in found], [0.025, 0.975])) for name in NAMES}


@pytest.mark.parametrize("levels", [None, 3])
def test_equals_scoring_every_resample(levels: int | None) -> None:
    maps, masks = images(14, 12, levels=levels)
    want = by_loop(maps, masks, repeats=60, seed=3)
    found = metrics.pixel_bootstrap(maps, masks, fpr_limits=LIMITS, repeats=60, seed=3)
    whole = metrics.pixel_metrics(maps, masks, LIMITS)
    assert set(found) == set(NAMES)
    for name, (value, low, high) in found.items():
        assert value == whole[name]
        assert (low, high) == pytest.approx(want[name], abs=1e-12), name
        assert low < value < high


def test_coarse_cells_stay_close() -> None:
    maps, masks = images(20, 40, levels=None, seed=1)
    want = by_loop(maps, masks, repeats=60, seed=0)
    found = metrics.pixel_bootstrap(maps, masks, fpr_limits=LIMITS, repeats=60, cells=128)
    exact = metrics.pixel_bootstrap(maps, masks, fpr_limits=LIMITS, repeats=60)
    for name in NAMES:
        assert found[name].value == exact[name].value
        assert (found[name].low, found[name].high) == pytest.approx(want[name], abs=4e-3), name
        assert (exact[name].low, exact[name].high) == pytest.approx(want[name], abs=1e-12), name


def test_a_draw_never_loses_the_only_defect() -> None:
    maps, masks = images(12, 12, levels=None)
    masks = [mask if i == 1 else None for i, mask in enumerate(masks)]
    found = metrics.pixel_bootstrap(maps, masks, repeats=50)
    assert all(np.isfinite(interval).all() for interval in found.values())


def test_undefined_and_wrong_input() -> None:
    maps, _ = images(4, 12, levels=None)
    found = metrics.pixel_bootstrap(maps, [None] * 4, repeats=5)
    assert np.isnan(list(found.values())).all()
    maps[2][0, 0] = np.nan
    with pytest.raises(UserError, match="sample 2"):
        metrics.pixel_bootstrap(maps, [np.eye(*one.shape) > 0 for one in maps], repeats=5)
    with pytest.raises(UserError, match="repeats"):
        metrics.pixel_bootstrap(*images(4, 12, levels=None), repeats=0)
