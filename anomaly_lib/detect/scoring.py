"""From an Evaluation to table rows: metrics of each class, confidence intervals, what a threshold does."""

from typing import Any

import numpy as np

from anomaly_lib.detect.contract import EvaluateArgs, Evaluation
from anomaly_lib.detect.tables import Cell, Table
from anomaly_lib.detect.thresholds import Threshold
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

AT_THRESHOLD = ("accuracy", "precision", "recall", "specificity", "f1")


def class_table(
    evaluations: list[tuple[Evaluation, Threshold | None]], args: EvaluateArgs, *, sets: list[str] | None = None
) -> Table:
    """A row for each (checkpoint, class), then the mean of each set of checkpoints (`sets`: a name for each)."""
    rows: list[dict[str, Cell]] = []
    means: dict[str, list[dict[str, Cell]]] = {}
    for index, (evaluation, threshold) in enumerate(evaluations):
        for group in sorted(set(evaluation.groups)):
            row = {"class": group, "run": evaluation.name, **group_metrics(evaluation, group, threshold, args)}
            rows.append(row)
            means.setdefault(sets[index] if sets else "", []).append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if len({row["run"] for row in rows}) == 1:
        columns.remove("run")
    for name, members in means.items():
        if len(members) > 1:
            rows.append(mean_row(members, columns) | {"run": name})
    return Table(columns, rows, _notes(evaluations))


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
    evaluation: Evaluation, group: str, threshold: Threshold | None, args: EvaluateArgs
) -> dict[str, Cell]:
    """All metrics of one class, image level first."""
    rows = np.array([name == group for name in evaluation.groups])
    scores, labels = to_numpy(evaluation.scores)[rows], to_numpy(evaluation.labels)[rows]
    if evaluation.kind == "regression":
        return _regression_row(scores, labels, args)
    row: dict[str, Cell] = {"images": int(rows.sum()), "anomalous": int((labels > 0).sum())}
    both = 0 < row["anomalous"] < row["images"]  # type: ignore[operator]
    metrics = image_metrics(scores, labels, threshold=threshold.value if threshold else None)
    for name, statistic in (("auroc", auroc), ("ap", average_precision)):
        row[name] = float(metrics[name])
        if args.bootstrap and both:
            interval = bootstrap_ci(statistic, scores, labels, groups=labels, repeats=args.bootstrap)
            row |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
    row["f1_max"] = float(metrics["f1_max"])
    if threshold is not None:
        row |= {name: float(metrics[name]) for name in AT_THRESHOLD}
    return row | _pixel_columns(evaluation, rows, args)


def _pixel_columns(evaluation: Evaluation, rows: np.ndarray, args: EvaluateArgs) -> dict[str, Cell]:
    if evaluation.maps is None or evaluation.masks is None:
        return {}
    chosen = np.flatnonzero(rows)
    maps, masks = to_numpy(evaluation.maps)[chosen], to_numpy(evaluation.masks)[chosen]
    limits = tuple(args.fpr_limits)
    if not args.bootstrap:
        found = pixel_metrics(maps, masks, fpr_limits=limits)
        return {f"pixel_{name}": float(value) for name, value in found.items() if not name.endswith("_threshold")}
    row: dict[str, Cell] = {}
    for name, interval in pixel_bootstrap(maps, masks, fpr_limits=limits, repeats=args.bootstrap).items():
        row[f"pixel_{name}"] = interval.value
        if not np.isnan(interval.low):
            row |= {f"pixel_{name}_low": interval.low, f"pixel_{name}_high": interval.high}
    return row


def _regression_row(predicted: np.ndarray, target: np.ndarray, args: EvaluateArgs) -> dict[str, Cell]:
    row: dict[str, Cell] = {"samples": int(target.size)}
    row |= {name: float(value) for name, value in regression_metrics(predicted, target).items()}
    if args.bootstrap:
        interval = bootstrap_ci(mae, predicted, target, repeats=args.bootstrap)
        row |= {"mae_low": interval.low, "mae_high": interval.high}
    return row


def _notes(evaluations: list[tuple[Evaluation, Threshold | None]]) -> list[str]:
    notes: list[str] = []
    for evaluation, threshold in evaluations:
        notes += evaluation.notes
        if threshold is not None:
            notes.append(f"{evaluation.name}: {threshold.describe()}")
        if threshold is not None and threshold.oracle:
            notes.append("oracle: the threshold was chosen with the labels of the scored split")
    return list(dict.fromkeys(notes))


def prediction_rows(evaluation: Evaluation, threshold: Threshold | None) -> list[dict[str, Any]]:
    """One row a sample, for predictions.csv."""
    scores, labels = to_numpy(evaluation.scores), to_numpy(evaluation.labels)
    rows = []
    for index, path in enumerate(evaluation.paths):
        row: dict[str, Any] = {"path": path, "class": evaluation.groups[index]}
        if evaluation.kind == "regression":
            row |= {"prediction": float(scores[index]), "target": float(labels[index])}
        else:
            decision = None if threshold is None else int(scores[index] >= threshold.value)
            row |= {"score": float(scores[index]), "label": int(labels[index]), "decision": decision}
        rows.append(row)
    return rows
