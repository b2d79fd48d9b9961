"""A decision keeps its promise: for exchangeable scores the false-alarm rate never exceeds the one it states."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anomaly_lib.detect.alarms import alarm_line, alarm_table
from anomaly_lib.detect.calibration import decision_from, far_out
from anomaly_lib.detect.decision import Decision, conformal_threshold, promised_rate
from anomaly_lib.detect.scores import Scores, sample_remarks
from anomaly_lib.errors import UserError
from anomaly_lib.metrics.rates import counted_rate
from anomaly_lib.types import Prediction


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=30),  # few values: ties in plenty
    st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.33, 0.5, 1.0]),
)
@settings(deadline=None, max_examples=300)
def test_the_promise_holds_exactly_ties_included(values: list[int], rate: float) -> None:
    """Each of n + 1 equal values is as likely the new one: count over all choices, no randomness left."""
    pool = [float(value) for value in values] + [3.0]
    alarms = 0
    for index in range(len(pool)):
        normal = sorted(pool[:index] + pool[index + 1 :])
        alarms += pool[index] >= conformal_threshold(normal, promised_rate(len(normal), rate)[0])
    promised = promised_rate(len(pool) - 1, rate)[0]
    assert Fraction(alarms, len(pool)) <= Fraction(promised).limit_denominator(10**6)


@pytest.mark.parametrize(("count", "rate", "place"), [(19, 0.05, 19), (99, 0.05, 95), (99, 0.1, 90), (100, 0.1, 91)])
def test_the_threshold_is_just_above_the_textbook_order_statistic(count: int, rate: float, place: int) -> None:
    normal = [float(i) for i in range(1, count + 1)]
    assert place == int(np.ceil((count + 1) * (1 - rate) - 1e-9))
    decision = Decision.promising(normal, rate, of="scores")
    assert decision.threshold == np.nextafter(float(place), np.inf)
    found = decision.decide(Prediction(torch.tensor([float(place), place + 0.5], dtype=torch.float64)))
    assert found.anomalous.tolist() == [False, True]
    assert found.p_value[1] <= rate < found.p_value[0]


def test_too_few_scores_promise_what_they_can_and_say_so() -> None:
    decision = Decision.promising([1.0, 2.0, 3.0], 0.05, of="leave-one-out scores")
    assert decision.false_alarms == 0.25
    assert "at most 25.00% false alarms, from 3 leave-one-out scores; 5.00% would need 19" in decision.source
    assert decision.threshold == np.nextafter(3.0, np.inf)
    assert Decision.promising(range(19), 0.05, of="scores").false_alarms == 0.05
    with pytest.raises(UserError, match="needs scores of normal data"):
        Decision.promising([], 0.05, of="scores")


def test_a_normal_score_itself_is_no_alarm_in_single_precision_either() -> None:
    normal = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float32)
    decision = Decision.promising(normal, 0.25, of="scores")
    assert decision.decide(Prediction(normal)).anomalous.tolist() == [False, False, False]


def test_anomalous_and_p_value_agree() -> None:
    rng = np.random.default_rng(0)
    normal, new = rng.normal(size=57), torch.tensor(rng.normal(size=400))
    for rate in (0.02, 0.05, 0.1, 0.3):
        decision = Decision.promising(normal, rate, of="scores", maxima=normal + 1)
        found = decision.decide(Prediction(new))
        assert torch.equal(found.anomalous, found.p_value <= decision.false_alarms + 1e-12)
        assert decision.map_threshold == pytest.approx(decision.threshold + 1)
        assert decision.at_rate(0.3).threshold <= decision.threshold
        assert Decision.from_plain(decision.plain()) == decision
        assert decision.at_rate(0.3) == Decision.promising(normal, 0.3, of="scores", maxima=normal + 1)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=25), st.sampled_from([0.05, 0.1, 0.25, 0.5]))
@settings(deadline=None, max_examples=100)
def test_no_more_normal_maps_than_promised_have_a_region(values: list[int], rate: float) -> None:
    """As for the score: each map is as likely the new one, ties included."""
    maps = torch.tensor(values, dtype=torch.float32)[:, None, None] + torch.linspace(-1, 0, 12).reshape(3, 4)
    marked, promised = 0, promised_rate(len(maps) - 1, rate)[0]
    for index in range(len(maps)):
        others = torch.cat([maps[:index], maps[index + 1 :]]).amax((1, 2))
        marked += bool(Decision.promising(others, rate, of="scores", maxima=others).region(maps[index]).any())
    assert Fraction(marked, len(maps)) <= Fraction(promised).limit_denominator(10**6)


def test_a_region_is_what_reaches_the_threshold_without_specks() -> None:
    maps = torch.zeros(2, 16, 16)
    maps[0, 2:6, 2:6] = 5.0  # 16 pixels
    maps[0, 10, 10:13] = 5.0  # 3 pixels: smaller than one value of the map's grid
    maps[0, 6, 6] = 5.0  # touches the square at its corner
    decision = Decision.promising(range(19), 0.05, of="scores", maxima=[1.0] * 19)
    found = decision.decide(Prediction(torch.tensor([20.0, 1.0]), maps, cell=4.0))
    wanted = torch.zeros(2, 16, 16, dtype=torch.bool)
    wanted[0, 2:6, 2:6] = wanted[0, 6, 6] = True
    assert torch.equal(found.region, wanted)
    assert found.area.tolist() == [17 / 256, 0.0]
    whole = decision.decide(Prediction(torch.tensor([20.0, 1.0]), maps))
    assert int(whole.region.sum()) == 20
    assert Decision(1.0, "by hand").decide(Prediction(torch.zeros(2), maps)).region is None


def test_rates_have_the_exact_interval() -> None:
    from scipy.stats import binomtest

    for hits, total in ((0, 7), (3, 60), (41, 52), (9, 9)):
        found, wanted = counted_rate(hits, total), binomtest(hits, total).proportion_ci(0.95, method="exact")
        assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert str(counted_rate(3, 60)) == "3/60 = 5.0% [1.0, 13.9]"
    with pytest.raises(UserError, match="total"):
        counted_rate(0, 0)


def test_alarms_are_counted_beside_the_promise_and_by_kind_of_defect() -> None:
    labels = np.array([0] * 60 + [1] * 52)
    values = np.concatenate([np.arange(60) / 60, np.full(41, 2.0), np.zeros(11)])
    defects = ["good"] * 60 + ["hole"] * 41 + ["stain"] * 11
    scores = Scores("demo", "x", values, labels, [str(i) for i in range(112)], ["nut"] * 112, defects=defects)
    decision = Decision(57 / 60, "by hand", false_alarms=0.05)
    assert alarm_line(scores, decision) == (
        "false alarms 3/60 = 5.0% [1.0, 13.9] (promised 5.0%), found 41/52 = 78.8% [65.3, 88.9]"
    )
    rows = {row["kind"]: row for row in alarm_table(scores, decision).rows}
    assert (rows["good"]["called"], rows["good"]["of"], rows["good"]["meaning"]) == (3, 60, "false alarms")
    assert (rows["hole"]["rate"], rows["stain"]["rate"]) == (1.0, 0.0)
    assert sample_remarks(scores) == []
    few = Scores("demo", "x", values[57:64], labels[57:64], list("abcdefg"), ["nut"] * 7)
    assert sample_remarks(few) == ["only 4 anomalous and 3 normal samples"]


def test_a_part_far_above_the_other_normal_ones_is_asked_about_everywhere_the_decision_is_told() -> None:
    """By hand: quartiles of 1..8 and 20 are 3 and 7, so that the fence is 7 + 3 * 4 = 19."""
    scores = torch.tensor([1.0, 20.0, 2, 3, 4, 5, 6, 7, 8])
    places = [Path(f"parts/good/{number}.png") for number in range(9)]
    decision = decision_from(Prediction(scores), 0.1, of="normal images", places=places)
    assert decision.doubtful == ("good/1.png",)
    assert decision.describe().endswith("normal images; good/1.png scores far above the others: is it normal?)")
    assert decision.at_rate(0.5).doubtful == decision.doubtful
    assert Decision.from_plain(decision.plain()) == decision
    scores[1] = 19.0
    assert not far_out(scores)  # on the fence is not beyond it


def test_few_scores_doubt_nobody_and_the_worst_is_named_first() -> None:
    assert far_out(torch.tensor([0.0, 0, 0, 0, 0, 0, 99])) == []
    assert far_out(torch.tensor([0.0, 1, 2, 1, 0, 1, 50, 1, 2, 0, 99, 1])) == [10, 6]


def test_the_decision_of_a_checkpoint_from_before_doubts_nobody() -> None:
    saved = Decision.promising([1.0, 2.0], 0.5, of="scores").plain()
    del saved["doubtful"]
    assert Decision.from_plain(saved).doubtful == ()
