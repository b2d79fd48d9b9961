"""What a run leaves behind for each domain: scores as CSV, figures, sample maps."""

from pathlib import Path

import numpy as np
import torch

from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.scores import Scores
from anomaly_lib.files import remove_leftovers, write_text
from anomaly_lib.systems.detectors.hdmap.options import Args
from anomaly_lib.systems.detectors.hdmap.reader import DomainSplit
from anomaly_lib.systems.detectors.hdmap.transfer import rows_of


def write_domain(folder: Path, data: DomainSplit, scores: Scores, decision: Decision, args: Args) -> None:
    """``analysis/{role}_{domain}/test_results.csv`` and figures, sample maps under ``visualize/``."""
    role = "source" if data.domain == args.source_domain else "target"
    analysis = folder / "analysis" / f"{role}_{data.domain}"
    analysis.mkdir(parents=True, exist_ok=True)
    remove_leftovers(analysis)
    rows = rows_of(scores, data.domain)
    found, labels = scores.scores[rows], scores.labels[rows]
    lines = ["image_path,ground_truth,anomaly_score,predicted_label"]
    lines += [
        f"{path},{label},{score:.9g},{int(score >= decision.threshold)}"
        for path, label, score in zip(data.paths, labels.tolist(), found.tolist(), strict=True)
    ]
    write_text(analysis / "test_results.csv", "\n".join(lines) + "\n")
    if not args.figures:
        return
    from anomaly_lib.viz import roc_and_pr, save_figure, score_histogram

    title = f"{args.model}, {role} {data.domain}"
    save_figure(roc_and_pr(found, labels, title=title), analysis / "roc_curve.png")
    histogram = score_histogram(
        found, labels, threshold=decision.threshold, title=title, threshold_name="source threshold"
    )
    save_figure(histogram, analysis / "score_distributions.png")
    place = folder / "visualize"
    place = place / "source_domain" if role == "source" else place / "target_domains" / data.domain
    if scores.maps is not None:
        _sample_maps(place, data, scores.maps[rows], args.sample_images)


def _sample_maps(place: Path, data: DomainSplit, maps: np.ndarray, count: int) -> None:
    """Evenly spaced maps of each class beside their heat maps, one colour scale a domain."""
    from anomaly_lib.viz import heat_colours, map_range, overlay, save_image

    grey, heat = map_range(data.images), map_range(maps)
    for label, name in ((0, "good"), (1, "fault")):
        members = (data.labels == label).nonzero().squeeze(1)
        (place / name).mkdir(parents=True, exist_ok=True)
        remove_leftovers(place / name)
        for i in members[:: max(1, len(members) // max(count, 1))][:count].tolist():
            picture = heat_colours(data.images[i, 0], grey)
            panel = torch.cat([torch.as_tensor(picture), torch.as_tensor(overlay(picture, maps[i], heat))])
            save_image(place / name / f"{Path(data.paths[i]).stem}.png", panel.numpy())
