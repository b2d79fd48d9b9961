"""From scores to table rows: metrics of each class, confidence intervals, what a decision does."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.scores import Evaluated, Scores, own_figures, planes
from anomaly_lib.detect.tables import Cell, Table
from anomaly_lib.metrics import (
    auroc,
    average_precision,
    bootstrap_ci,
    image_metrics,
    mae,
    pixel_bootstrap,
    pixel_metrics,
)
from anomaly_lib.metrics.inputs import to_numpy
from anomaly_lib.metrics.prediction import regression_metrics
from anomaly_lib.types import Prediction

AT_THRESHOLD = ("accuracy", "precision", "recall", "specificity", "f1")


def class_table(
    done: Sequence[Evaluated],
    *,
    bootstrap: int = 0,
    fpr_limits: Sequence[float] = (0.3,),
    sets: list[str] | None = None,
) -> Table:
    """A row for each (checkpoint, class), then the mean of each set of checkpoints (`sets`: a name for each)."""
    rows: list[dict[str, Cell]] = []
    means: dict[str, list[dict[str, Cell]]] = {}
    for index, one in enumerate(done):
        for group in sorted(set(one.scores.groups)):
            figures = group_metrics(one.scores, group, one.decision, bootstrap=bootstrap, fpr_limits=fpr_limits)
            row = {"class": group, "run": one.scores.name, **figures}
            rows.append(row)
            means.setdefault(sets[index] if sets else "", []).append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if len({row["run"] for row in rows}) == 1:
        columns.remove("run")
    for name, members in means.items():
        if len(members) > 1:
            rows.append(mean_row(members, columns) | {"run": name})
    return Table(columns, rows, _notes(done))


def mean_row(rows: list[dict[str, Cell]], columns: list[str]) -> dict[str, Cell]:
    """Unweighted mean over classes of every metric that exists; intervals and counts are not averaged."""
    mean: dict[str, Cell] = {"class": "mean"}
    for name in columns:
        values = [row[name] for row in rows if isinstance(row.get(name), float)]
        figures = [value for value in values if isinstance(value, float) and not np.isnan(value)]
        if figures and not name.endswith(("_low", "_high")):
            mean[name] = float(np.mean(figures))
    return mean


def group_metrics(
    evaluation: Scores, group: str, decision: Decision | None, *, bootstrap: int, fpr_limits: Sequence[float]
) -> dict[str, Cell]:
    """All metrics of one class, image level first."""
    rows = np.array([name == group for name in evaluation.groups])
    scores, labels = to_numpy(evaluation.scores)[rows], to_numpy(evaluation.labels)[rows]
    if evaluation.kind == "regression":
        return _regression_row(scores, labels, bootstrap)
    row: dict[str, Cell] = {"images": int(rows.sum()), "anomalous": int((labels > 0).sum())}
    both = 0 < row["anomalous"] < row["images"]  # type: ignore[operator]
    metrics = image_metrics(scores, labels, threshold=decision.threshold if decision else None)
    for name, statistic in (("auroc", auroc), ("ap", average_precision)):
        row[name] = float(metrics[name])
        if bootstrap and both:
            interval = bootstrap_ci(statistic, scores, labels, groups=labels, repeats=bootstrap)
            row |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    row["f1_max"] = float(metrics["f1_max"])
    if decision is not None:
        row |= {name: float(metrics[name]) for name in AT_THRESHOLD}
    row |= _pixel_columns(evaluation, rows, bootstrap, tuple(fpr_limits))
    return row | own_figures(evaluation, rows)


def _pixel_columns(evaluation: Scores, rows: np.ndarray, bootstrap: int, limits: tuple[float, ...]) -> dict[str, Cell]:
    if evaluation.maps is None or evaluation.masks is None:
        return {}
    maps, masks = planes(evaluation.maps, rows), planes(evaluation.masks, rows)
    if not bootstrap:
        found = pixel_metrics(maps, masks, fpr_limits=limits)
        return {f"pixel_{name}": float(value) for name, value in found.items() if not name.endswith("_threshold")}
    row: dict[str, Cell] = {}
    for name, interval in pixel_bootstrap(maps, masks, fpr_limits=limits, repeats=bootstrap).items():
        row[f"pixel_{name}"] = interval.value
        if not np.isnan(interval.low):
            row |= {f"pixel_{name}_low": interval.low, f"pixel_{name}_high": interval.high}
    return row


def _regression_row(predicted: np.ndarray, target: np.ndarray, bootstrap: int) -> dict[str, Cell]:
    row: dict[str, Cell] = {"samples": int(target.size)}
    row |= {name: float(value) for name, value in regression_metrics(predicted, target).items()}
    if bootstrap:
        interval = bootstrap_ci(mae, predicted, target, repeats=bootstrap)
        row |= {"mae_low": interval.low, "mae_high": interval.high}
    return row


def _notes(done: Sequence[Evaluated]) -> list[str]:
    notes: list[str] = []
    for one in done:
        notes += one.remarks
        if one.decision is not None:
            notes.append(f"{one.scores.name}: {one.decision.describe()}")
        if one.decision is not None and one.decision.oracle:
            notes.append("oracle: the threshold was chosen with the labels of the scored split")
    return list(dict.fromkeys(notes))


def prediction_rows(one: Evaluated) -> list[dict[str, Any]]:
    """One row a sample, for predictions.csv."""
    evaluation = one.scores
    scores, labels = to_numpy(evaluation.scores), to_numpy(evaluation.labels)
    cells, rows = decided_cells(one.decided), []
    for index, path in enumerate(evaluation.paths):
        row: dict[str, Any] = {"path": path, "class": evaluation.groups[index]}
        if evaluation.defects is not None:
            row["defect"] = evaluation.defects[index]
        if evaluation.kind == "regression":
            row |= {"prediction": float(scores[index]), "target": float(labels[index])}
        else:
            row |= {"label": int(labels[index]), **cells[index]}
        rows.append(row)
    return rows


def decided_cells(found: Prediction) -> list[dict[str, Any]]:
    """What predictions.csv says of each input: score, and where they exist threshold, p_value, anomalous and area."""
    columns: dict[str, list[Any]] = {"score": found.score.detach().cpu().tolist()}
    if found.threshold is not None:
        columns["threshold"] = [found.threshold] * len(found)
    if found.p_value is not None:
        columns["p_value"] = [f"{value:.6g}" for value in found.p_value.tolist()]
    if found.anomalous is not None:
        columns["anomalous"] = found.anomalous.int().tolist()
    if found.area is not None:
        columns["area"] = [f"{value:.6g}" for value in found.area.tolist()]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
