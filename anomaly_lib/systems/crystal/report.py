"""What a crystal run leaves in its folder: prediction files, histories, a figure, and the published closing lines."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anomaly_lib import viz
from anomaly_lib.detect.figures import draw_maps
from anomaly_lib.detect.scores import Scores, summary
from anomaly_lib.files import write_atomic, write_json
from anomaly_lib.systems.crystal.detector import CrystalDetector
from anomaly_lib.systems.crystal.inputs import CrystalData


def scored(detector: CrystalDetector, data: CrystalData, split: str) -> Scores:
    """Scores of one part of the training run's data."""
    return detector.score(detector.selection(data, split, batch_size=detector.args.batch_size))


def figures(detector: CrystalDetector, data: CrystalData, split: str) -> dict[str, float]:
    """val_mae, val_loss, ... of one part; what epochs are chosen by on the test set is named oracle_test_..."""
    scores = scored(detector, data, split)
    found, wanted = torch.as_tensor(scores.scores), torch.as_tensor(scores.labels)
    if detector.args.classification:
        loss = nn.functional.binary_cross_entropy(found.double(), wanted.double())
    else:
        loss = nn.functional.mse_loss(detector.scale.to_model(found), detector.scale.to_model(wanted))
    return {f"{scores.split}_loss": float(loss), **summary(scores, detector.decision)}


def write_scores(path: Path, detector: CrystalDetector, data: CrystalData, split: str) -> Scores:
    """Write id, target and prediction of one part's crystals as CSV; returns its scores."""
    scores = scored(detector, data, split)
    lowest = 0.0 if detector.args.protocol == "paper" else float("-inf")  # published files cut negative values off
    rows = [data.rows[position] for position in getattr(data.split, split)]

    def fill(stream: Any) -> None:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["id", "target", "prediction"])
        for row, value in zip(rows, scores.scores.tolist(), strict=True):
            writer.writerow([row.id, f"{row.target:.6f}", f"{max(value, lowest):.6f}"])

    write_atomic(path, fill, mode="w")
    return scores


def draw(folder: Path, scores: Scores, detector: CrystalDetector) -> None:
    """Predicted against true values, or the histogram of a classification."""
    if detector.decision is not None:
        draw_maps(folder, scores, detector.decision)
    else:
        viz.save_figure(viz.parity_plot(scores.scores, scores.labels, title=scores.name), folder / "parity.png")


def write_histories(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """history_train.json and history_val.json: figure -> its value at each epoch."""
    for part in ("train", "val"):
        keys = [key for key in (history[-1] if history else {}) if key.startswith(f"{part}_")]
        found = {key.removeprefix(f"{part}_"): [row.get(key) for row in history] for key in keys}
        write_json(folder / f"history_{part}.json", found)


def published_lines(metrics: Mapping[str, float]) -> list[str]:
    """The closing lines of the published program (tools search logs for them), and what fusion adds."""
    watched = "accuracy" if "val_accuracy" in metrics else "mae"
    lines = [f"Best Validation {watched.upper()}: {metrics[f'val_{watched}']:.4f}"]
    if f"oracle_test_{watched}" in metrics:
        value = metrics[f"oracle_test_{watched}"]
        lines.append(f"Oracle Test {watched.upper()} (selected on the test set): {value:.4f}")
    else:
        value = metrics[f"test_{watched}"]
        lines.append(f"Best Test {watched.upper()}: {value:.4f}  (weights chosen on validation)")
    alone = {"graph alone": "graph_only_test", "text alone": "text_only_test", "mean predictor": "mean_predictor_test"}
    found = {label: metrics.get(f"{name}_{watched}") for label, name in alone.items()}
    return lines + [f"  {label:>16}: {value:.4f}" for label, value in found.items() if value is not None]
