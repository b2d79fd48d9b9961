"""A new decision of one class stands beside those of the others, and with them for images of all."""

import numpy as np
import pytest

from anomaly_lib.detect.decision import Decision
from anomaly_lib.errors import UserError
from anomaly_lib.systems.sowa.decide import Decisions
from anomaly_lib.systems.sowa.detector import SowaDetector


def knowing(decisions: Decisions, class_name: str) -> SowaDetector:
    """A detector without a network, of which only its decisions are asked."""
    detector = SowaDetector.__new__(SowaDetector)
    detector.decisions, detector.decision, detector.class_name = decisions, decisions.whole, class_name
    detector.memories = {}
    return detector


def promising(first: float, count: int = 19) -> Decision:
    return Decision.promising(first + np.arange(count), 0.05, of="normal images", maxima=10 * first + np.arange(count))


def test_a_new_decision_beside_those_of_other_classes() -> None:
    old, new = promising(0), promising(100)
    found = Decisions.from_plain(knowing(Decisions({"bolt": old}, old), "nut").record_of(new))
    assert found.each == {"bolt": old, "nut": new}
    assert found.whole.normal == (*old.normal, *new.normal)
    assert found.whole.map_threshold == np.nextafter(found.whole.maxima[37], np.inf)  # the ceil(39 * 0.95)-th of 38
    again = Decisions.from_plain(knowing(found, "nut").record_of(promising(5)))
    assert again.each == {"bolt": old, "nut": promising(5)}
    views = Decision.of_views([1.0, 2.0], of="views")
    mixed = Decisions.from_plain(knowing(Decisions({"bolt": views}, views), "nut").record_of(new))
    assert mixed.whole is None  # stand-ins promise nothing, so there is no promise for both


def test_without_a_class_a_decision_holds_for_all_that_may_come() -> None:
    found = Decisions.from_plain(knowing(Decisions(), "").record_of(promising(0)))
    assert (found.each, found.whole) == ({}, promising(0))


def test_a_class_is_chosen_with_its_decision() -> None:
    detector = knowing(Decisions({"bolt": promising(0), "nut": promising(100)}, promising(50)), "")
    assert detector.of_class("nut").decision == promising(100)
    assert detector.decision == promising(50)
    detector.memories = {"bolt": None, "nut": None}
    with pytest.raises(UserError, match="obj=ring: this detector remembers bolt, nut"):
        detector.of_class("ring")
