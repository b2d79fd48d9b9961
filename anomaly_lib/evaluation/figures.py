"""Which figures an evaluation gets."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_lib import viz
from anomaly_lib.detect.figures import overlays
from anomaly_lib.detect.scores import Evaluated, Scores, planes
from anomaly_lib.evaluation.options import EvaluateArgs
from anomaly_lib.metrics import auroc, pixel_curve
from anomaly_lib.metrics.inputs import to_numpy


def draw_figures(folder: Path, done: list[Evaluated], args: EvaluateArgs) -> list[Path]:
    """PNG and SVG files; one set a run, and bars over the classes of all runs."""
    written: list[Path] = []
    for index, one in enumerate(done):
        stem = "" if len(done) == 1 else f"{index:02d}_{file_name(one.scores.name)}_"
        for name, figure in _figures(one, args).items():
            written += viz.save_figure(figure, folder / f"{stem}{name}")
    bars = {one.scores.name: _class_aurocs(one.scores) for one in done if one.scores.kind == "detection"}
    if sum(map(len, bars.values())) > 1:
        written += viz.save_figure(viz.class_bars(bars, metric="image AUROC"), folder / "classes")
    return written


def file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("_")[:80]


def _class_aurocs(evaluation: Scores) -> dict[str, float]:
    groups = np.array(evaluation.groups)
    scores, labels = to_numpy(evaluation.scores), to_numpy(evaluation.labels)
    return {name: auroc(scores[groups == name], labels[groups == name]) for name in sorted(set(evaluation.groups))}


def _figures(one: Evaluated, args: EvaluateArgs) -> dict[str, Any]:
    evaluation, decision = one.scores, one.decision
    scores, labels = to_numpy(evaluation.scores), to_numpy(evaluation.labels)
    if evaluation.kind == "regression":
        return {"parity": viz.parity_plot(scores, labels, title=evaluation.name)}
    name = "threshold" if decision is None or not decision.oracle else "oracle threshold"
    value = None if decision is None else decision.threshold
    figures = {
        "histogram": viz.score_histogram(scores, labels, threshold=value, threshold_name=name, title=evaluation.name)
    }
    if 0 < (labels > 0).sum() < labels.size:
        figures["roc_pr"] = viz.roc_and_pr(scores, labels, title=evaluation.name)
    if evaluation.maps is not None and evaluation.masks is not None and to_numpy(evaluation.masks).any():
        curves = {}
        for group in sorted(set(evaluation.groups)):
            rows = np.array(evaluation.groups) == group
            curves[group] = pixel_curve(planes(evaluation.maps, rows), planes(evaluation.masks, rows))
        figures["aupro"] = viz.aupro_curves(curves, fpr_limit=args.fpr_limits[0], title=evaluation.name)
    if evaluation.image is not None:
        figures |= _picture_figures(one)
    return figures


def _picture_figures(one: Evaluated) -> dict[str, Any]:
    evaluation = one.scores
    assert evaluation.image is not None
    maps = evaluation.maps
    names = [f"{Path(path).parent.name}/{Path(path).stem}" for path in evaluation.paths]
    labels, scores = to_numpy(evaluation.labels), to_numpy(evaluation.scores)
    figures = {
        "failures": viz.failure_gallery(
            evaluation.image,
            scores,
            labels,
            maps=maps,
            masks=evaluation.masks,
            regions=one.decided.region,
            names=names,
            threshold=one.decided.threshold,
        )
    }
    if maps is not None:
        figures["overlays"] = overlays(evaluation, one.decided.region)
    return figures
