"""Why V4 called a weld what it did, as pictures: Grad-CAM over the photographs, attention over time."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from anomaly_lib.metrics import auroc
from anomaly_lib.models.grad_cam import grad_cam
from anomaly_lib.models.weld.quad_config import MODALITIES
from anomaly_lib.systems.weld.data.manifest import CLASSES, RawRun, WeldRun
from anomaly_lib.systems.weld.data.runs import load_raw
from anomaly_lib.systems.weld.supcon.detector import QuadDetector
from anomaly_lib.systems.weld.supcon.knn import hide
from anomaly_lib.systems.weld.supcon.task import quad_batch
from anomaly_lib.viz import map_range, overlay, save_figure, save_image
from anomaly_lib.viz.overlays import resize_map
from anomaly_lib.viz.style import SERIES, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURRENT = 3  # column of the sensor series
LOCAL = ("lack_of_fusion", "porosity_w_excessive_penetration", "porosity", "burnthrough", "crater_cracks")
"""Defects whose damage has a place in the photographs."""


def explain(detector: QuadDetector, run: WeldRun, folder: Path) -> dict[str, Any]:
    """Write Grad-CAM over each photo and the attention over time; say what each modality contributes."""
    detector.features.prepare([run])
    batch, model = quad_batch(detector.features, [run]), detector.task.model.eval()
    with torch.no_grad():
        out = model(batch)
        chosen = int(out["logits"].argmax())
        drop = [float((out["logits"] - model(hide(batch, keep))["logits"])[0, chosen]) for keep in one_hidden()]
    raw, relevance = load_raw(run, detector.args), photo_relevance(detector, run).numpy()
    for view, photo in enumerate(raw.photos[: len(relevance)]):
        pixels = overlay(photo, relevance[view], map_range(relevance))
        save_image(folder / f"{run.run_id}_view{view}.png", pixels)
    looked = {name: weights[0].numpy() for name, weights in over_time(detector, run).items()}
    title = f"{run.class_name}, called {CLASSES[chosen]}"
    save_figure(timeline(looked, recorded(raw), title=title), folder / f"{run.run_id}_attention", formats=("png",))
    return {
        "run": run.run_id,
        "truth": run.class_name,
        "predicted": CLASSES[chosen],
        "modality_contribution": dict(zip(MODALITIES, drop, strict=True)),
        "attention_peak": {name: (int(np.argmax(w)) + 0.5) / len(w) for name, w in looked.items()},
    }


def photo_relevance(detector: QuadDetector, run: WeldRun) -> Tensor:
    """Grad-CAM [V, h, w] in 0..1 of the predicted class, on the tokens of the photographs."""
    features, model = detector.features, detector.task.model.eval()
    features.prepare([run])
    images = features.load_part(run, "images")["images"].to(features.device)
    with torch.no_grad():
        tokens = features.encoders.photo_tokens(images)
        batch, gate = quad_batch(features, [run]), nn.Identity()
        chosen = int(model(batch)["logits"].argmax())

    def forward() -> Tensor:
        return model({**batch, "images": gate(tokens).mean(1)[None]})["logits"][:, chosen]  # type: ignore[no-any-return]

    return grad_cam(gate, forward).cpu()


def pixels_found(detector: QuadDetector, runs: Sequence[WeldRun]) -> float:
    """AUROC of the pixels of drawn damage by Grad-CAM, mean over the runs of `LOCAL` classes; chance is 0.5."""
    found = []
    for run in (one for one in runs if one.class_name in LOCAL):
        relevance = photo_relevance(detector, run).numpy()
        masks = load_raw(run, detector.args, ("images",)).masks[: len(relevance)]
        if not any(mask.any() for mask in masks):
            continue
        maps = [resize_map(one, mask.shape) for one, mask in zip(relevance, masks, strict=True)]
        found.append(auroc(np.concatenate(maps).ravel(), np.concatenate(masks).ravel()))
    return float(np.mean(found)) if found else math.nan


def one_hidden() -> list[list[bool]]:
    """For each modality: all but that one."""
    return [[name != hidden for name in MODALITIES] for hidden in MODALITIES]


# -- over time ----------------------------------------------------------------------------------------------------


def over_time(detector: QuadDetector, run: WeldRun) -> dict[str, Tensor]:
    """What the fusion reads over the recording [1, times] of video, sound and sensors."""
    parts = detector.predict([run]).parts
    return {name: torch.as_tensor(parts[f"attention.{name}"]) for name in ("video", "audio", "sensors")}


def recorded(raw: RawRun) -> dict[str, np.ndarray]:
    """What was recorded over the same time, one number a moment: brightness, loudness, welding current."""
    found = {}
    if raw.video is not None:
        found["video"] = raw.video.astype(np.float32).mean((1, 2))
    if raw.audio is not None:
        found["audio"] = np.array([part.std() for part in np.array_split(raw.audio, 200)])
    if raw.sensors is not None:
        found["sensors"] = raw.sensors[:, CURRENT]
    return found


@styled
def timeline(attention: dict[str, np.ndarray], signals: dict[str, np.ndarray], *, title: str) -> "Figure":
    """One strip per modality: its attention as steps, above what was recorded, both over the time of the weld."""
    figure, axes = new_figure(7.0, 5.2, rows=len(attention), sharex=True)
    said = {"video": "pool brightness", "audio": "loudness", "sensors": "current"}
    for axis, (name, weights) in zip(axes[:, 0], attention.items(), strict=True):
        edges, share = np.linspace(0, 1, len(weights) + 1), weights * len(weights) / weights.sum()
        axis.stairs(share, edges, baseline=1.0, color=SERIES[0], fill=True, alpha=0.35)
        axis.stairs(share, edges, baseline=None, color=SERIES[0], linewidth=1.5)
        axis.axhline(1.0, color="0.6", linewidth=0.8)  # what looking everywhere alike would give
        reach = max(0.1, 1.15 * np.abs(share - 1).max())
        axis.set(ylabel=f"{name}\n(1 = even)", ylim=(1 - reach, 1 + reach))
        if name in signals:
            other = axis.twinx()
            places = (np.arange(len(signals[name])) + 0.5) / len(signals[name])
            other.plot(places, signals[name], color=SERIES[1], linewidth=1.0, alpha=0.7)
            other.set(ylabel=said[name], yticks=[])
            other.grid(visible=False)
    axes[0, 0].set_title(title, loc="left")
    axes[-1, 0].set(xlabel="share of the recording", xlim=(0, 1))
    return figure
