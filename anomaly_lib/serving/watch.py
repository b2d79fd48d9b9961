"""Are the parts that are asked for still like the normal data of the decisions?"""

from collections.abc import Mapping

from anomaly_lib.detect.drift import DriftCheck
from anomaly_lib.serving.guard import LOG
from anomaly_lib.serving.service import Service


class Watch:
    """A drift check for each detector whose decision has scores of normal parts to compare with; `found` in words."""

    def __init__(self, services: Mapping[str, Service]) -> None:
        decisions = {name: one.detector.decision for name, one in services.items()}
        self._checks = {
            name: DriftCheck.beside(one) for name, one in decisions.items() if one is not None and one.has_p_values
        }
        self.found: dict[str, str] = {}

    def part(self, model: str, score: float) -> None:
        """A new part has this score."""
        if model in self._checks and self._checks[model].add(score):
            self.found[model] = self._checks[model].describe()
            LOG.warning("%s: %s", model, self.found[model])

    def told(self, model: str) -> dict[str, str]:
        """What an answer says of it, if a drift was found."""
        return {"drift": self.found[model]} if model in self.found else {}

    def counts(self) -> dict[str, int]:
        """1 where a drift was found, of each detector that is watched."""
        return {name: int(name in self.found) for name in self._checks}
