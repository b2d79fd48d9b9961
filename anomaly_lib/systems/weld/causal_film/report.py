"""What is said of a Causal-FiLM's scores: per-class tables, hints, and what single modalities manage."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anomaly_lib.detect.scores import Scores
from anomaly_lib.metrics import auroc, threshold_metrics
from anomaly_lib.systems.weld.causal_film.explain import CHUNK, vectors_of
from anomaly_lib.systems.weld.data.manifest import WeldRun
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.figures import class_aurocs, difference, has_both, in_words, mismatch_auroc


def report_lines(scores: Scores, runs: Sequence[WeldRun]) -> list[str]:
    """Base rates, confusion counts at Youden's threshold, hints."""
    values, labels = torch.as_tensor(scores.scores), torch.as_tensor(scores.labels)
    defects, total = int(labels.sum()), len(runs)
    lines = [
        f"{total} runs, {defects} defective; calling all defective gives F1 {2 * defects / (total + defects):.4f}, "
        f"AP {defects / total:.4f}"
    ]
    if "youden_threshold" in scores.own:
        threshold = scores.own["youden_threshold"]
        at = threshold_metrics(values, labels, threshold)
        counts = ", ".join(f"{name} {int(at[name])}" for name in ("tp", "fp", "fn", "tn"))
        validated = scores.validation is not None and has_both(scores.validation)
        whose = "the validation runs" if validated else "these very runs (oracle)"
        lines.append(f"at Youden's threshold {threshold:.4f} of {whose}: {counts}")
    return lines + class_hints(values, runs)


def class_hints(scores: Tensor, runs: Sequence[WeldRun], *, low: float = 0.7) -> list[str]:
    """Which part of the system a badly found class points at."""
    advice = {
        "warping": "slow drifts are the sensor branch's: check the sensors, --modulator, --sensor-norm train",
        "crater_cracks": "fine cracks are the result encoder's: check --branches, --view-pool, --image-size",
        "excessive_convexity": "the bead's shape is what a video auto-encoder adds: scripts/weld/evaluate_fusion.py",
    }
    found = class_aurocs(scores, runs)
    return [
        f"hint: {name} has AUROC {found[name]:.2f}; {text}"
        for name, text in advice.items()
        if found.get(name, 1.0) < low
    ]


def diagnose(history: Sequence[dict[str, float]]) -> list[str]:
    """Hints from the curves, each naming the knob."""
    lines = []
    if len(history) >= 10:
        last, first = history[-1], history[0]
        losses = np.array([row["loss"] for row in history])
        gap = last["val_score_min"] / max(last["train_score"], 1e-12)
        if gap > 1.5:
            lines.append(
                f"hint: even the best validation weld scores {gap:.1f} x the training mean: overfitting; raise "
                "--weight-decay or --feature-mask-ratio"
            )
        if losses[-1] > 0.9 * losses[0] and first["loss"] > 0:
            lines.append("hint: the training loss hardly falls; raise --learning-rate (3e-5 at most for DINOv3)")
        steps = np.diff(losses[len(losses) // 2 :])
        if (
            len(steps) > 4
            and (np.sign(steps[1:]) != np.sign(steps[:-1])).mean() > 0.8
            and steps.std() > 0.1 * losses.mean()
        ):
            lines.append("hint: the training loss swings; raise --warmup-epochs or lower --learning-rate")
        if last["collapse"] < 0.05:
            lines.append("hint: all welds get nearly one encoding (collapse); use --target-mode stopgrad or ema_target")
    if len(history) > 25:
        late = [row["val_auroc"] for row in history[20:]]
        if max(late) <= max(row["val_auroc"] for row in history[:20]):
            lines.append(
                "hint: validation has not improved since epoch 20; lower --learning-rate or raise --weight-decay"
            )
    return lines


def draw_run(folder: Path, scores: Scores, runs: Sequence[WeldRun], history: Sequence[dict[str, float]]) -> list[str]:
    """AUROC of every defect, and loss and validation curves, into the run folder; returns the file names."""
    from anomaly_lib.viz import class_bars, save_figure, training_lines

    bars = class_aurocs(torch.as_tensor(scores.scores), runs)
    figures = {"defects.png": class_bars({"Causal-FiLM": bars}, title="each defect against good welds")}
    if history:
        curves = {name: [row[name] for row in history] for name in ("loss", "val_auroc", "val_auroc_raw", "collapse")}
        figures["training.png"] = training_lines(curves)
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    return list(figures)


# -- what single modalities manage --------------------------------------------------------------------------------


def modality_vectors(features: WeldFeatures, runs: Sequence[WeldRun]) -> dict[str, Tensor]:
    """One vector per run and modality (`explain.vectors_of`)."""
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, len(runs), CHUNK):
        for name, vectors in vectors_of(features.batch(runs[start : start + CHUNK])).items():
            parts.setdefault(name, []).append(vectors)
    return {name: torch.cat(vectors).cpu() for name, vectors in parts.items()}


def single_modality_scores(
    features: WeldFeatures, normal: Sequence[WeldRun], runs: Sequence[WeldRun], *, neighbours: int = 5
) -> dict[str, Tensor]:
    """Mean distance to the nearest normal runs in standardised features, for each modality by itself."""
    known, asked = modality_vectors(features, normal), modality_vectors(features, runs)
    scores = {}
    for name, reference in known.items():
        mean, std = reference.mean(0), reference.std(0).clamp_min(1e-6)
        distance = torch.cdist((asked[name] - mean) / std, (reference - mean) / std)
        scores[name] = distance.topk(min(neighbours, len(normal)), largest=False).values.mean(1)
    return scores


def single_modality_lines(
    features: WeldFeatures, normal: Sequence[WeldRun], runs: Sequence[WeldRun], scores: Scores
) -> list[str]:
    """A table, AUROC of each modality by itself beside that of `scores`, and whether the model beats the best."""
    if features.cache == "off":
        return []
    alone = single_modality_scores(features, normal, runs)
    found = {f"{name} only (nearest normal runs)": values for name, values in alone.items()}
    found["Causal-FiLM"] = torch.as_tensor(scores.scores)
    lines = [f"{'detector':>40}  AUROC   mismatch defects"]
    for name, values in found.items():
        mismatch = f"{mismatch_auroc(values, runs):.4f}" if "mismatch_auroc" in scores.own else "-"
        lines.append(f"{name:>40}  {auroc(values, scores.labels):.4f}  {mismatch}")
    return [*lines, *against_the_best(found, torch.as_tensor(scores.labels))]


def against_the_best(found: Mapping[str, Tensor], labels: Tensor) -> list[str]:
    """Does the last of `found` (name -> scores [N]) beat the best of the others on the same welds? One line."""
    if len(labels.unique()) < 2:
        return []
    *others, model = found
    best = max(others, key=lambda name: auroc(found[name], labels))
    gap = difference(found[model], found[best], labels)
    said = "beats" if gap.low > 0 else "is behind" if gap.high < 0 else "is level with"
    return [
        f"{model} {said} the best single modality, {best}: AUROC {auroc(found[model], labels):.4f} and "
        f"{auroc(found[best], labels):.4f}, difference {in_words(gap)} (95 %)"
    ]
