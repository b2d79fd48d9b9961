"""What the one-class detectors of welds share: which runs are scored, and what is reported of them."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor

from anomaly_lib.detect.calibration import decision_from
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.contract import Detector, Selection
from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.scores import Scores
from anomaly_lib.systems.weld.data.manifest import WeldRun, select_runs
from anomaly_lib.systems.weld.figures import class_table, own_figures
from anomaly_lib.systems.weld.inputs import data_name, open_runs
from anomaly_lib.systems.weld.runs_of import normal_runs_below
from anomaly_lib.types import Prediction


@dataclass
class Beside:
    """What is scored beside the chosen runs, and what must be said of them."""

    validation: list[WeldRun] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class ScoresRuns(Protocol):
    """What `validation_decision` asks of a detector."""

    def score_runs(self, runs: Sequence[WeldRun]) -> Tensor: ...


def validation_decision(detector: ScoresRuns, runs: Sequence[WeldRun], args: Any) -> Decision | None:
    """What the normal ones among the validation `runs` promise; None where there are none."""
    normal = [run for run in runs if run.split == "val" and not run.label]
    if not normal:
        return None
    chose = ", which the epoch was chosen on" if getattr(args, "select", "last") == "val" else ""
    found, places = Prediction(detector.score_runs(normal)), [run.folder for run in normal]
    return decision_from(found, args.false_alarms, of=f"normal validation runs{chose}", places=places)


class WeldDetector(Detector):
    """A detector of whole runs. Derived classes supply `score_runs`, `readable` and `_predict`."""

    honours: ClassVar[frozenset[str]] = frozenset({"on_error"})
    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")

    @abstractmethod
    def score_runs(self, runs: Sequence[WeldRun], *, batch_size: int = Choice.batch_size) -> Tensor:
        """Anomaly scores [N] of runs, on the CPU."""

    @abstractmethod
    def readable(self, runs: Sequence[WeldRun]) -> tuple[list[WeldRun], list[dict[str, str]]]:
        """The runs that can be scored, and the others as {"path", "reason"}."""

    def inputs_below(self, folder: Path) -> list[WeldRun]:
        """The good runs that a manifest lists, or every run folder below (each is taken for good)."""
        return normal_runs_below(folder)

    def trained_on(self) -> Sequence[WeldRun]:
        return select_runs(open_runs(self.args), "train", normal_only=True)

    def usable(self, runs: Sequence[WeldRun]) -> list[WeldRun]:
        """The runs that have what a score needs."""
        return list(runs)

    def _items(self, choice: Choice) -> Selection:
        return self.select(open_runs(self.args, choice), choice)

    def select(self, runs: Sequence[WeldRun], choice: Choice) -> Selection:
        """The chosen runs among `runs`; those of the validation split go beside them."""
        chosen = select_runs(runs, choice.split)
        validation = [run for run in runs if run.split == "val" and choice.split != "val"]
        skipped: list[dict[str, str]] = []
        if choice.on_error == "skip":
            readable, skipped = self.readable([*chosen, *validation])
            kept = set(readable)
            chosen, validation = [r for r in chosen if r in kept], [r for r in validation if r in kept]
        notes = [f"skipped {one['path']}: {one['reason']}" for one in skipped]
        beside = Beside(self.usable(validation) if validation else [], notes)
        return Selection(data_name(self.args), self.usable(chosen), choice, beside)

    def _score(self, selection: Selection) -> Scores:
        runs, beside = list(selection.items), selection.beside or Beside()
        found = self.score_runs(runs, batch_size=selection.choice.batch_size)
        validation = None
        if beside.validation:
            values = self.score_runs(beside.validation, batch_size=selection.choice.batch_size)
            validation = values.numpy(), np.array([run.label for run in beside.validation])
        return Scores(
            system=self.system,
            name=selection.name,
            scores=found.numpy(),
            labels=np.array([run.label for run in runs]),
            paths=[run.folder.as_posix() for run in runs],
            groups=["weld"] * len(runs),
            defects=[run.class_name for run in runs],
            split=selection.choice.split,
            validation=validation,
            own=own_figures(found, runs, validation),
            notes=list(beside.notes),
            tables={"classes": class_table(found, runs)},
        )
