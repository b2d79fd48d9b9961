"""The drift check never speaks more often than it promises while parts are alike, and soon once the light changes."""

from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.drift import DriftCheck


def fires(check: DriftCheck, scores: np.ndarray) -> int | None:
    """Number of the score at which the check speaks."""
    return next((number for number, score in enumerate(scores, start=1) if check.add(float(score))), None)


@given(
    st.lists(st.floats(-3, 3, width=16), min_size=2, max_size=12),
    st.integers(0, 30),
    st.sampled_from([0.5, 0.25, 0.1]),
    st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=20)
def test_an_exchangeable_stream_is_called_drift_no_more_often_than_promised(
    values: list[float], calibration: int, chance: float, seed: int
) -> None:
    """Draws from any values, ties in plenty, split anywhere into calibration and stream."""
    rng, repeats = np.random.default_rng(seed), 120
    spoken = 0
    for repeat in range(repeats):
        drawn = rng.choice(values, size=calibration + 60)
        check = DriftCheck(drawn[:calibration], chance=chance, seed=repeat)
        spoken += fires(check, drawn[calibration:]) is not None
    assert spoken <= repeats * chance + 5 * np.sqrt(repeats * chance * (1 - chance))


def test_the_game_is_fair_to_the_last_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Averaged over the 13 places that are equally likely for the new score, no step changes the wealth."""
    monkeypatch.setattr(np.random, "default_rng", lambda seed: SimpleNamespace(random=lambda: 0.5))
    start = DriftCheck(range(9))
    for score in (3.5, 8.5, 0.5):
        start.add(score)
    after = []
    for place in (-1.0, *(value + 0.01 for value in [0, 0.5, 1, 2, 3, 3.5, 4, 5, 6, 7, 8, 8.5])):
        check = deepcopy(start)
        check.add(place)
        after.append(check.wealth)
    assert np.mean(after) == pytest.approx(start.wealth, rel=1e-12)
    assert np.std(after) > 1e-4


@pytest.mark.parametrize("way", [1, -1])
@pytest.mark.parametrize("begin", [0, 300])
def test_a_drift_of_brightness_is_said_once(way: int, begin: int) -> None:
    rng = np.random.default_rng(3)
    brightness = np.concatenate([np.zeros(begin), np.linspace(0, 0.4, 200)])
    pictures = rng.normal(0.5, 0.05, size=(len(brightness), 64))
    scores = np.abs(pictures - 0.45).mean(1) if way < 0 else pictures.mean(1)
    scores = scores + way * brightness  # a detector that is further from, or nearer to, what it knows
    normal = rng.normal(0.5, 0.05, size=(100, 64))
    known = np.abs(normal - 0.45).mean(1) if way < 0 else normal.mean(1)
    check = DriftCheck(known)
    found = fires(check, scores)
    assert found is not None
    assert begin < found < begin + 60
    assert ("rise" if way > 0 else "fall") in check.describe()
    assert fires(check, scores) is None  # once


def test_anomalies_in_the_stream_are_no_drift() -> None:
    """As predict --watch uses it: a tenth of the parts are anomalies. Drift below the threshold is found as well."""
    spoken, repeats = 0, 60
    for repeat in range(repeats):
        rng = np.random.default_rng(repeat)
        decision = Decision.promising(rng.normal(size=40), 0.1, of="scores")
        check = DriftCheck.beside(decision, chance=0.2)
        stream = np.where(rng.random(250) < 0.1, 9.0, rng.normal(size=250))
        spoken += fires(check, stream) is not None
    assert spoken <= repeats * 0.2
    found = 0
    for repeat in range(20):
        rng = np.random.default_rng(repeat)
        decision = Decision.promising(rng.normal(size=100), 0.05, of="scores")
        shifted = rng.normal(0.8, size=300)
        found += fires(DriftCheck.beside(decision), shifted) is not None
    assert found >= 18


def test_a_jump_beyond_the_threshold_is_said_after_a_few_parts() -> None:
    """No part is taken for normal any more; that most are called anomalous is the news."""
    rng = np.random.default_rng(5)
    decision = Decision.promising(rng.normal(size=100), 0.05, of="scores")
    check = DriftCheck.beside(decision)
    found = fires(check, np.concatenate([rng.normal(size=200), np.full(60, 9.0)]))
    assert found is not None
    assert 200 < found < 230
    assert "more than 25% of the parts are called anomalous" in check.describe()
