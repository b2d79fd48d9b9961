"""What a detector says of many samples, with what is known of them, and the figures that follow."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.tables import Table
from anomaly_lib.metrics import auroc, image_metrics, pixel_auroc, pixel_metrics
from anomaly_lib.metrics.inputs import to_numpy
from anomaly_lib.metrics.own import METRICS, own_metrics
from anomaly_lib.metrics.prediction import classification_metrics, regression_metrics
from anomaly_lib.ops.predictions import stacked
from anomaly_lib.types import Prediction

RANKING = ("auroc", "ap", "f1_max")
AT_DECISION = ("accuracy", "f1")
PIXEL = ("auroc", "ap", "f1_max", "aupro")


@dataclass
class Scores:
    """Scores of N samples. Metrics, tables, thresholds, figures and reports are computed from this alone."""

    system: str
    name: str  # what was scored, e.g. "demo capsule k=1 seg"
    scores: Any  # [N] anomaly scores, probabilities (classification) or values (regression)
    labels: Any  # [N] 0 normal, 1 anomalous; targets of a regression
    paths: list[str]  # [N] a unique name for each sample
    groups: list[str]  # [N] class of each sample: a row of the table each
    kind: str = "detection"  # "detection", "classification" or "regression"
    split: str = "test"  # names of classification and regression figures begin with it
    averaged: bool = False  # figures are the mean over groups, as papers on many classes report them
    defects: list[str] | None = None  # [N] finer kind, shown in the report
    maps: Any = None  # [N, H, W] anomaly maps
    cell: float = 1.0  # pixels of a map that one value covered before the map was enlarged
    masks: Any = None  # [N, H, W] bool; None where no pixel truth exists
    parts: dict[str, Any] = field(default_factory=dict)  # branch -> its scores [N] or its maps [N, H, W]
    image: Callable[[int], np.ndarray] | None = None  # sample index -> [H, W, 3] uint8, what the network saw
    validation: tuple[Any, Any] | None = None  # (scores, labels) of a validation split, where the system has one
    own: dict[str, float] = field(default_factory=dict)  # figures that only this system knows, e.g. a transfer ratio
    tables: dict[str, Table] = field(default_factory=dict)  # what only this system tabulates, e.g. {"classes": ...}
    notes: list[str] = field(default_factory=list)  # e.g. "transductive: ..."
    facts: dict[str, Any] = field(default_factory=dict)  # e.g. epoch, seed

    def __len__(self) -> int:
        return len(self.paths)

    def decided(self, decision: Decision | None) -> Prediction:
        """Scores and maps with what a decision says of them."""
        maps = None if self.maps is None else torch.as_tensor(to_numpy(self.maps))
        found = Prediction(torch.as_tensor(to_numpy(self.scores)), maps, cell=self.cell)
        return found if decision is None else decision.decide(found)

    def chosen(self, rows: np.ndarray, *, note: str) -> "Scores":
        """The samples where `rows` [N] is true, with a remark that says why."""
        places = np.flatnonzero(rows)

        def some(values: Any) -> Any:
            if values is None:
                return None
            if to_numpy(values).ndim < 3:
                return to_numpy(values)[places]
            return to_numpy(stacked((torch.from_numpy(one)[None] for one in planes(values, rows)), len(places)))

        picture = self.image
        return replace(
            self,
            scores=some(self.scores),
            labels=some(self.labels),
            paths=[self.paths[i] for i in places],
            groups=[self.groups[i] for i in places],
            defects=None if self.defects is None else [self.defects[i] for i in places],
            maps=some(self.maps),
            masks=some(self.masks),
            parts={name: some(part) for name, part in self.parts.items()},
            image=None if picture is None else lambda index: picture(int(places[index])),
            notes=[*self.notes, note],
        )


@dataclass
class Evaluated:
    """One detector's scores of a split, the decision in force, and the figures that follow."""

    checkpoint: Path
    scores: Scores
    decision: Decision | None
    metrics: dict[str, float]
    remarks: list[str]  # what must stand beside the figures

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items())
        remarks = f" [{', '.join(self.remarks)}]" if self.remarks else ""
        return f"{self.scores.name}: {figures}{remarks}"

    @cached_property
    def decided(self) -> Prediction:
        """Scores and maps with what the decision says of them."""
        return self.scores.decided(self.decision)


FEW = 10


def sample_remarks(scores: Scores) -> list[str]:
    """What must stand beside figures that rest on few samples of a kind, or on one label alone."""
    if scores.kind == "regression":
        return [f"only {len(scores)} samples"] if len(scores) < FEW else []
    labels, groups = to_numpy(scores.labels) > 0, np.array(scores.groups)
    found: dict[str, str] = {}
    for name in sorted(set(groups)) if scores.averaged else [""]:  # a mean over classes rests on the figures of each
        here = labels[groups == name] if name else labels
        counts = {"anomalous": int(here.sum()), "normal": int((~here).sum())}
        few = [f"{count} {kind}" for kind, count in counts.items() if count < FEW]
        if few:
            found[name] = f"only {' and '.join(few)} samples"
    if not found:
        return []
    name, remark = next(iter(found.items()))
    more = f" and of {len(found) - 1} more classes as few" if len(found) > 1 else ""
    return [f"{remark} of {name}{more}" if name else remark]


def summary(scores: Scores, decision: Decision | None = None) -> dict[str, float]:
    """The figures of a whole split under the names that training, evaluation and tables share."""
    if scores.kind == "regression":
        found = regression_metrics(to_numpy(scores.scores), to_numpy(scores.labels))
        return {f"{scores.split}_{name}": float(value) for name, value in found.items()} | scores.own
    if scores.kind == "classification":
        assert decision is not None
        found = classification_metrics(scores.scores, scores.labels, threshold=decision.threshold)
        return {f"{scores.split}_{name}": float(value) for name, value in found.items()} | scores.own
    groups = np.array(scores.groups)
    every = np.ones(len(groups), bool)
    rows = [_figures(scores, groups == name) for name in sorted(set(groups))] if scores.averaged else [
        _figures(scores, every)
    ]  # fmt: skip
    metrics = {name: _mean(rows, name) for name in dict.fromkeys(name for row in rows for name in row)}
    if decision is not None:
        found = image_metrics(scores.scores, scores.labels, threshold=decision.threshold)
        metrics |= {f"image_{name}": float(found[name]) for name in AT_DECISION}
    return metrics | scores.own


def _figures(scores: Scores, rows: np.ndarray) -> dict[str, float]:
    """Ranking figures of some samples: images, pixels where all masks are known, then each branch alone."""
    labels = to_numpy(scores.labels)[rows]
    found = image_metrics(to_numpy(scores.scores)[rows], labels)
    metrics = {f"image_{name}": float(found[name]) for name in RANKING}
    masks = [] if scores.masks is None else planes(scores.masks, rows)
    marked = any(mask.any() for mask in masks)
    if marked and scores.maps is not None:
        pixels = pixel_metrics(planes(scores.maps, rows), masks)
        metrics |= {f"pixel_{name}": float(pixels[name]) for name in PIXEL}
    metrics |= own_figures(scores, rows)
    for name, part in scores.parts.items():
        if to_numpy(part).ndim == 1:
            metrics[f"{name}_auroc"] = float(auroc(to_numpy(part)[rows], labels))
        elif marked:
            metrics[f"{name}_pixel_auroc"] = float(pixel_auroc(planes(part, rows), masks))
    return metrics


def planes(values: Any, rows: np.ndarray) -> list[np.ndarray]:
    """Maps or masks [H, W] of the samples where `rows` [N] is true; none is copied."""
    stack = to_numpy(values)
    return [stack[index] for index in np.flatnonzero(rows)]


def own_figures(scores: Scores, rows: np.ndarray) -> dict[str, float]:
    """What the metrics that a plugin has registered say of some samples."""
    if not METRICS:
        return {}
    maps, masks = (None if one is None else to_numpy(one)[rows] for one in (scores.maps, scores.masks))
    return own_metrics(to_numpy(scores.scores)[rows], to_numpy(scores.labels)[rows], maps, masks)


def _mean(rows: list[dict[str, float]], name: str) -> float:
    """Unweighted mean over the groups that have the figure; nan where none has."""
    values = [row[name] for row in rows if name in row and not np.isnan(row[name])]
    return float(np.mean(values)) if values else float("nan")
