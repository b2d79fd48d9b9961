"""What the one-class detectors of welds share: which runs are scored, and what is reported of them."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from anomaly_lib.detect.calibration import decision_from
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.contract import Detector, Selection
from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.scores import Scores
from anomaly_lib.metrics import auroc, threshold_metrics, youden
from anomaly_lib.systems.weld.data.demo import MISMATCH
from anomaly_lib.systems.weld.data.manifest import WeldRun, select_runs
from anomaly_lib.systems.weld.inputs import data_name, open_runs
from anomaly_lib.systems.weld.runs_of import normal_runs_below
from anomaly_lib.types import Prediction

FPR_LIMITS = (0.3, 0.1, 0.05, 0.01)


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
    return decision_from(
        Prediction(detector.score_runs(normal)), args.false_alarms, of=f"normal validation runs{chose}"
    )


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
            own=own_figures(found, runs),
            notes=list(beside.notes),
        )


def own_figures(scores: Tensor, runs: Sequence[WeldRun]) -> dict[str, float]:
    """Figures of welds beside the general ones: at Youden's threshold, partial areas, and mismatches of drawn welds."""
    labels = torch.tensor([run.label for run in runs])
    own: dict[str, float] = {}
    _, threshold = youden(scores, labels)
    if np.isfinite(threshold):
        at = threshold_metrics(scores, labels, threshold)
        own = {"youden_threshold": threshold, **{name: float(at[name]) for name in ("precision", "recall", "f1")}}
    own |= {f"pseudo_aupro_{limit:g}": partial_auroc(scores, labels, limit) for limit in FPR_LIMITS}
    if runs and runs[0].render is not None:
        own["mismatch_auroc"] = mismatch_auroc(scores, runs)
    return own


def mismatch_auroc(scores: Tensor, runs: Sequence[WeldRun]) -> float:
    """AUROC of the defects whose bead is normal, but belongs to another process, against good welds."""
    chosen = [i for i, run in enumerate(runs) if run.label == 0 or run.class_name in MISMATCH]
    return auroc(scores[chosen], torch.tensor([runs[i].label for i in chosen]))


def partial_auroc(scores: Tensor, labels: Tensor, limit: float) -> float:
    """Area under the ROC curve up to a false-positive rate, divided by it.

    Without pixel truth the original's "P-AUPRO" is this number: its map is the score everywhere.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    sorted_scores, truth = scores[order].double(), labels[order].double()
    last = torch.cat([sorted_scores[1:] != sorted_scores[:-1], torch.ones(1, dtype=torch.bool)])
    tpr = torch.cat([torch.zeros(1), (truth.cumsum(0) / truth.sum().clamp_min(1))[last]]).numpy()
    fpr = torch.cat([torch.zeros(1), ((1 - truth).cumsum(0) / (1 - truth).sum().clamp_min(1))[last]]).numpy()
    inside = fpr <= limit
    x, y = np.append(fpr[inside], limit), np.append(tpr[inside], np.interp(limit, fpr, tpr))
    return float(np.sum((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2) / limit)
