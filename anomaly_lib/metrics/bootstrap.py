"""Confidence intervals by resampling."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from anomaly_lib.errors import UserError
from anomaly_lib.metrics.inputs import to_numpy


class Interval(NamedTuple):
    value: float
    low: float
    high: float


def bootstrap_ci(
    statistic: Callable[..., float],
    *columns: Any,
    groups: Any = None,
    repeats: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of `statistic(*columns)` over resampled rows.

    `groups` (for example the labels) are resampled apart, so no draw loses a class: `bootstrap_ci(auroc, s, y,
    groups=y)`.
    """
    arrays = [to_numpy(column) for column in columns]
    if not arrays or len(arrays[0]) == 0 or len({len(array) for array in arrays}) != 1:
        raise UserError(f"a bootstrap needs columns of one non-zero length; got {[len(array) for array in arrays]}")
    check_bootstrap(level, repeats)
    group = np.zeros(len(arrays[0])) if groups is None else to_numpy(groups)
    draws = [statistic(*(array[rows] for array in arrays)) for rows in draw_rows(group, repeats, seed)]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(*arrays)), float(low), float(high))


def check_bootstrap(level: float, repeats: int) -> None:
    """Refuse what no interval can be made of."""
    if not 0 < level < 1 or repeats < 1:
        raise UserError(f"a bootstrap needs 0 < level < 1 and repeats >= 1; got {level} and {repeats}")


def draw_rows(groups: np.ndarray, repeats: int, seed: int) -> Iterator[np.ndarray]:
    """Row numbers of each resample; every group keeps its size."""
    members = [np.flatnonzero(groups == one) for one in np.unique(groups)]
    generator = np.random.default_rng(seed)
    for _ in range(repeats):
        yield np.concatenate([generator.choice(member, member.size) for member in members])
