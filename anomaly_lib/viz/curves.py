"""Score histograms and the curves behind the numbers: ROC, precision-recall, per-region overlap."""

from typing import TYPE_CHECKING, Any

import numpy as np

from anomaly_lib.metrics import ThresholdCurve, auroc, average_precision, score_curve
from anomaly_lib.viz.overlays import as_array
from anomaly_lib.viz.style import ANOMALOUS, NORMAL, SERIES, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def score_histogram(
    scores: Any,
    labels: Any,
    *,
    threshold: float | None = None,
    title: str = "",
    threshold_name: str = "threshold",
) -> "Figure":
    """Scores of normal and anomalous images on shared bins; with a threshold, what it gets right and wrong."""
    scores, labels = as_array(scores).astype(float), as_array(labels).astype(bool)
    figure, axes = new_figure(6.0, 3.4)
    axis = axes[0, 0]
    edges = np.histogram_bin_edges(scores, bins=min(40, max(10, int(np.sqrt(scores.size) * 2))))
    for chosen, colour, hatch, name in ((~labels, NORMAL, "", "normal"), (labels, ANOMALOUS, "///", "anomalous")):
        label = f"{name} ({int(chosen.sum())})"
        axis.hist(scores[chosen], edges, color=colour, alpha=0.55, label=label, hatch=hatch, edgecolor=colour)
    if threshold is not None:
        found, wrong = int((scores[labels] >= threshold).sum()), int((scores[~labels] >= threshold).sum())
        text = (
            f"{threshold_name} {threshold:.4g}:\nfinds {found}/{labels.sum()}, false alarms {wrong}/{(~labels).sum()}"
        )
        axis.axvline(threshold, color="black", linestyle="--", linewidth=1.4, label=text)
    axis.set(xlabel="anomaly score", ylabel="images")
    if title:
        axis.set_title(title, loc="left")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


@styled
def roc_and_pr(scores: Any, labels: Any, *, title: str = "") -> "Figure":
    """Both curves of one set of image scores, with their areas."""
    curve = score_curve(scores, labels)
    figure, axes = new_figure(8.4, 3.8, columns=2)
    roc, pr = axes[0]
    false_rate, true_rate = _roc_points(curve)
    roc.plot(false_rate, true_rate, color=SERIES[0], label=f"AUROC {auroc(scores, labels):.3f}")
    roc.plot([0, 1], [0, 1], color="#888888", linestyle=":", label="chance")
    roc.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    roc.legend(loc="lower right")
    recall, precision = curve.tp / max(curve.positives, 1), curve.tp / np.maximum(curve.tp + curve.fp, 1)
    ap = average_precision(scores, labels)
    pr.step(
        np.append(0, recall), np.append(precision[:1], precision), where="pre", color=SERIES[1], label=f"AP {ap:.3f}"
    )
    base = curve.positives / max(curve.positives + curve.negatives, 1)
    pr.axhline(base, color="#888888", linestyle=":", label=f"chance {base:.2f}")
    pr.set(xlabel="recall", ylabel="precision", xlim=(-0.01, 1.01), ylim=(0, 1.02))
    pr.legend(loc="lower left")
    if title:
        figure.suptitle(title)
    return figure


def _roc_points(curve: ThresholdCurve) -> tuple[np.ndarray, np.ndarray]:
    """The exact ROC polyline: between two anomalous scores it runs flat, at a score both share it slopes."""
    true_rate = curve.tp / max(curve.positives, 1)
    before = np.concatenate([[0.0], true_rate[:-1]])
    x = np.stack([curve.fp_above, curve.fp], axis=1).ravel() / max(curve.negatives, 1)
    y = np.stack([before, true_rate], axis=1).ravel()
    return np.concatenate([[0.0], x, [1.0]]), np.concatenate([[0.0], y, y[-1:]])


@styled
def aupro_curves(curves: dict[str, ThresholdCurve], *, fpr_limit: float = 0.3, title: str = "") -> "Figure":
    """Mean overlap with the true regions against the pixel false positive rate, a line per name, up to the limit."""
    figure, axes = new_figure(6.0, 4.0)
    axis = axes[0, 0]
    for index, (name, curve) in enumerate(curves.items()):
        if curve.overlap is None or not curve.negatives:
            continue
        before = np.concatenate([[0.0], curve.overlap[:-1]])
        x = np.stack([curve.fp_above, curve.fp], axis=1).ravel() / curve.negatives
        y = np.stack([before, curve.overlap], axis=1).ravel()
        x, y = np.concatenate([[0.0], x, [1.0]]), np.concatenate([[0.0], y, y[-1:]])
        keep = np.unique(np.linspace(0, x.size - 1, min(x.size, 2000)).round().astype(int))
        label = f"{name} (AUPRO {curve.aupro(fpr_limit):.3f})"
        line = "-" if index < len(SERIES) else "--"
        axis.plot(x[keep], y[keep], color=SERIES[index % len(SERIES)], linestyle=line, label=label)
    axis.set(xlim=(0, fpr_limit), ylim=(0, 1.02), xlabel=f"pixel false positive rate (limit {fpr_limit:g})")
    axis.set(ylabel="mean region overlap", title=title or None)
    axis.legend(loc="lower right")
    return figure
