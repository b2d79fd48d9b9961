"""The contract between systems and the programs over them.

A system supplies what only it knows: options, network, data, loop, and a detector class derived from `Detector`. The
programs (evaluate, predict, report, export) know nothing but what stands here.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from anomaly_lib.backbones.identity import weight_remarks
from anomaly_lib.config import Options
from anomaly_lib.detect.choice import EVERYWHERE, Choice
from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.feature_graph import FeatureGraph
from anomaly_lib.detect.scores import Scores
from anomaly_lib.engine.checkpoint import Checkpoint
from anomaly_lib.errors import OptionError, UserError
from anomaly_lib.metrics.inputs import to_numpy
from anomaly_lib.types import Prediction, RunResult

NO_NORMAL_DATA = "it has no scores of normal data that it was not trained on"


@dataclass
class Selection:
    """The samples that a choice stands for."""

    name: str  # what is scored, e.g. "demo capsule k=1 seg"
    items: Sequence[Any]  # whatever the system scores
    choice: Choice = field(default_factory=Choice)
    beside: Any = None  # what the system needs beside the samples, e.g. support images


@dataclass
class Facts:
    """What a detector says about itself wherever its results are shown."""

    weights: Mapping[str, str] = field(default_factory=dict)  # frozen network -> checksum of its weights or "random"
    notes: Sequence[str] = ()  # remarks that must stand beside its results, e.g. "oracle: epoch chosen on ..."
    shown: Mapping[str, Any] = field(default_factory=dict)  # e.g. {"epoch": 12, "seed": 0}

    def remarks(self) -> list[str]:
        return [*self.notes, *weight_remarks(self.weights)]


AnyDetector = TypeVar("AnyDetector", bound="Detector")


class Detector(ABC):
    """A trained detector. Derived classes supply `_items`, `_score` and `_predict`; all else is the same for all."""

    system: ClassVar[str]
    honours: ClassVar[frozenset[str]]  # fields of `Choice` that change something here, beside EVERYWHERE
    splits: ClassVar[tuple[str, ...]] = ("test",)

    args: Any  # the options of its training run
    facts: Facts
    decision: Decision | None = None
    undecided: str = NO_NORMAL_DATA  # why there is no decision, where there is none

    def items(self, choice: Choice | None = None) -> Selection:
        """The samples of a split of the training run's data, or of other data. A choice without effect is refused."""
        choice = choice or Choice()
        default = Choice()
        for f in fields(Choice):
            value = getattr(choice, f.name)
            if f.name not in self.honours | EVERYWHERE | {"split"} and value != getattr(default, f.name):
                raise OptionError(f"{f.name}={value}: has no meaning for a trained {self.system} detector")
        if choice.split not in self.splits:
            raise OptionError(f"split={choice.split}: {self.system} is scored on {', '.join(self.splits)} only")
        return self._items(choice)

    def score(self, selection: Selection) -> Scores:
        """Scores, maps and what is known of many samples, streamed and from the feature store where there is one."""
        return _finite(self._score(selection), skip=selection.choice.on_error == "skip")

    def decision_for(self, selection: Selection) -> Decision | None:  # noqa: ARG002  (of the detectors it differs for)
        """The stored decision where it holds for these samples: a choice (`shot`) may make another detector of it."""
        return self.decision

    def predict(self, inputs: Any) -> Prediction:
        """Score one or many raw inputs, with the decision where the detector has one."""
        prediction = self._predict(inputs)
        bad = (~prediction.score.isfinite()).nonzero().flatten().tolist()
        if bad:
            raise UserError(f"input {bad[0]}: its score is not finite; is it damaged, or are the detector's weights?")
        return prediction if self.decision is None else self.decision.decide(prediction)

    def inputs_below(self, folder: Path) -> list[Any]:  # noqa: ARG002 - of the detectors that have such inputs
        """What `predict` takes, below a folder; of a described data set the normal samples."""
        raise UserError(f"{self.system}: has no normal inputs, so no decision can be made from them")

    def of_class(self: AnyDetector, name: str) -> AnyDetector:
        """The detector for images of one class, where it knows several."""
        raise OptionError(f"obj={name}: has no meaning for a trained {self.system} detector, it knows one class")

    def record_of(self, decision: Decision) -> dict[str, Any]:
        """What a checkpoint's extra holds of a new decision of this detector."""
        return {"decision": decision.plain()}

    def trained_on(self) -> Sequence[Any]:
        """The normal samples of its training run, read anew, as far as they are known and still there."""
        return ()

    def feature_graph(self) -> FeatureGraph | None:
        """Its score as a function of features, of a detector whose inputs are no pictures; None: it has none."""
        return None

    @abstractmethod
    def _items(self, choice: Choice) -> Selection: ...

    @abstractmethod
    def _score(self, selection: Selection) -> Scores: ...

    @abstractmethod
    def _predict(self, inputs: Any) -> Prediction: ...


def _finite(scores: Scores, *, skip: bool) -> Scores:
    """The scores, none of which may be NaN or infinite: such a sample is named, or left out and listed."""
    good = np.isfinite(to_numpy(scores.scores))
    if scores.maps is not None:
        good &= np.array([bool(np.isfinite(to_numpy(one)).all()) for one in scores.maps], dtype=bool)
    if good.all():
        return scores
    bad = [scores.paths[i] for i in np.flatnonzero(~good)]
    if not skip or not good.any():
        raise UserError(
            f"{bad[0]}: its score is not finite; is the file damaged, or are the detector's weights? "
            "(on_error=skip leaves such samples out)"
        )
    return scores.chosen(good, note=f"left out, their scores are not finite: {', '.join(bad)}")


class System(Protocol):
    """What the registry offers of each system; modules are imported on first use."""

    @property
    def name(self) -> str: ...

    @property
    def Args(self) -> type[Options]: ...

    def tiny(self, **changes: Any) -> Any:
        """Options of a run of seconds on a CPU, without a download, with `changes`."""

    def train(self, args: Any) -> RunResult: ...

    def load(
        self, checkpoint: Checkpoint, *, device: str = "auto", weights: str | None = None, which: str = "auto"
    ) -> Detector:
        """The detector of a checkpoint. `weights`: where the frozen network's weight file lies now; `which`: averaged
        ("ema") or "raw" trained parameters, "auto" = averaged where there are any."""

    def adopt(self, content: Mapping[str, Any], path: Path) -> Checkpoint | None:
        """A file of the system's authors in the form of ours, or None when it is none of theirs."""
