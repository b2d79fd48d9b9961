"""The figures that training leaves: which images they show, and what is written."""

from dataclasses import replace

import numpy as np
from PIL import Image

from anomaly_lib.detect.decision import Decision
from anomaly_lib.detect.figures import draw_maps, images_to_show
from anomaly_lib.detect.scores import Scores


def scores_of(count: int) -> Scores:
    """`count` normal images with rising scores, then `count` anomalous ones above them."""
    values = np.linspace(0, 1, 2 * count, dtype=np.float32)
    pictures = np.random.default_rng(0).integers(0, 255, (2 * count, 8, 12, 3), dtype=np.uint8)
    masks = np.zeros((2 * count, 8, 12), bool)
    masks[count:, 2:5, 3:7] = True
    return Scores(
        system="detectors", name="demo", scores=values, labels=np.repeat([0, 1], count),
        paths=[str(i) for i in range(2 * count)], groups=["part"] * (2 * count), defects=["good", "hole"] * count,
        maps=np.random.default_rng(1).random((2 * count, 8, 12), dtype=np.float32), masks=masks,
        image=lambda index: pictures[index],
    )  # fmt: skip


def test_defects_are_shown_from_the_highest_score_to_the_lowest_and_the_most_suspicious_normals() -> None:
    scores = scores_of(30)
    shown = images_to_show(scores.scores, scores.labels)
    assert shown == [59, 55, 51, 47, 42, 38, 34, 30, 29, 28, 27, 26]
    assert images_to_show(scores.scores[:2], scores.labels[:2]) == [1, 0]


def test_both_figures_are_written_and_the_heat_maps_are_in_one_of_them(tmp_path) -> None:
    scores = scores_of(5)
    written = draw_maps(tmp_path, scores, Decision.of(0.5, "a test"))
    assert {path.name for path in written} == {"scores.png", "scores.svg", "maps.png", "maps.svg"}
    text = (tmp_path / "scores.svg").read_text()
    assert "threshold 0.5:" in text
    assert "finds 5/5, false alarms 0/5" in text
    assert "hole 0.778" in (tmp_path / "maps.svg").read_text()
    pixels = np.asarray(Image.open(tmp_path / "maps.png").convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 100


def test_without_maps_or_a_decision_only_the_histogram_is_drawn(tmp_path) -> None:
    written = draw_maps(tmp_path, replace(scores_of(5), maps=None), None)
    assert {path.name for path in written} == {"scores.png", "scores.svg"}
    assert "threshold" not in (tmp_path / "scores.svg").read_text()
