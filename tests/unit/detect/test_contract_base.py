"""What the shared base of all detectors does for each of them."""

from typing import Any

import numpy as np
import pytest
import torch

from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.contract import Detector, Facts, Selection
from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.scores import Scores
from anomaly_lib.errors import UserError
from anomaly_lib.types import Prediction


class Fixed(Detector):
    """Scores what it is given as the score."""

    system = "fixed"
    honours = frozenset({"obj", "on_error"})

    def __init__(self, values: list[float], maps: Any = None) -> None:
        self.values, self.maps, self.facts = np.array(values), maps, Facts(weights={"net": "random"}, notes=["oracle"])

    def _items(self, choice: Choice) -> Selection:
        return Selection("fixed", list(range(len(self.values))), choice)

    def _score(self, selection: Selection) -> Scores:
        names = [f"{i}.png" for i in selection.items]
        return Scores(
            "fixed", "fixed", self.values, np.arange(len(names)) % 2, names, ["a"] * len(names), maps=self.maps
        )

    def _predict(self, inputs: Any) -> Prediction:
        return Prediction(torch.tensor(inputs, dtype=torch.float32))


def test_a_choice_without_effect_is_refused() -> None:
    detector = Fixed([0.0, 1.0])
    assert detector.items(Choice(obj="nut")).choice.obj == "nut"
    with pytest.raises(UserError, match=r"^shot=3: has no meaning for a trained fixed detector"):
        detector.items(Choice(shot=3))
    with pytest.raises(UserError, match=r"^split=val: fixed is scored on test only"):
        detector.items(Choice(split="val"))
    assert detector.facts.remarks() == ["oracle", "random weights: net"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_named_or_left_out_and_never_normal(value: float) -> None:
    detector = Fixed([0.0, 1.0, value, 3.0])
    with pytest.raises(UserError, match=r"^2\.png: its score is not finite"):
        detector.score(detector.items())
    found = detector.score(detector.items(Choice(on_error="skip")))
    assert found.paths == ["0.png", "1.png", "3.png"]
    assert found.scores.tolist() == [0.0, 1.0, 3.0]
    assert "2.png" in found.notes[-1]
    detector.decision = Decision(0.5, "by hand")
    assert detector.predict([0.0, 1.0]).anomalous.tolist() == [False, True]
    with pytest.raises(UserError, match=r"^input 1: its score is not finite"):
        detector.predict([0.0, value])


def test_maps_count_too() -> None:
    maps = np.zeros((2, 3, 3))
    maps[1, 1, 1] = np.nan
    detector = Fixed([0.0, 1.0], maps)
    with pytest.raises(UserError, match=r"^1\.png"):
        detector.score(detector.items())
