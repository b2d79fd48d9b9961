"""Figures show the numbers they are given: read back from the drawn objects, and from the pixels of overlays."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from anomaly_lib import viz
from anomaly_lib.metrics import auroc, pixel_curve
from anomaly_lib.viz.style import TRUTH_RGB

RNG = np.random.default_rng(0)
LABELS = np.repeat([0, 1], [30, 20])
SCORES = RNG.normal(LABELS * 1.5, 1.0)


def test_importing_viz_does_not_load_matplotlib() -> None:
    code = "import sys, anomaly_lib.viz; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_legend_of_a_histogram_lies_inside_the_figure() -> None:
    scores, labels = np.linspace(0, 1, 2000), np.arange(2000) % 2
    figure = viz.score_histogram(scores, labels, threshold=0.123456, threshold_name="source threshold")
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


def test_histogram_counts_every_image_and_states_the_threshold() -> None:
    figure = viz.score_histogram(SCORES, LABELS, threshold=0.7)
    axis = figure.axes[0]
    assert sum(bar.get_height() for bar in axis.patches) == 50
    text = figure.legends[0].get_texts()[-1].get_text()
    found, alarms = int((SCORES[30:] >= 0.7).sum()), int((SCORES[:30] >= 0.7).sum())
    assert f"finds {found}/20, false alarms {alarms}/30" in text


def test_roc_line_has_the_area_it_states() -> None:
    scores = np.round(SCORES, 1)  # with ties between the classes
    figure = viz.roc_and_pr(scores, LABELS)
    x, y = figure.axes[0].lines[0].get_data()
    assert np.trapezoid(y, x) == pytest.approx(auroc(scores, LABELS), abs=1e-9)


def test_aupro_line_has_the_area_it_states() -> None:
    masks = np.zeros((4, 32, 32), dtype=bool)
    masks[:3, 5:12, 8:20] = True
    curve = pixel_curve(RNG.random(masks.shape) + 0.4 * masks, masks)
    x, y = viz.aupro_curves({"demo": curve}, fpr_limit=1.0).axes[0].lines[0].get_data()
    assert np.trapezoid(y, x) == pytest.approx(curve.aupro(1.0), abs=2e-3)


def test_overlay_leaves_low_scores_and_colours_high_ones() -> None:
    image = np.full((40, 40, 3), 120, dtype=np.uint8)
    scores = np.zeros((10, 10))
    scores[5:, 5:] = 1.0
    mixed = viz.overlay(image, scores, (0.0, 1.0)).astype(int)
    assert mixed[35, 35, 0] - mixed[35, 35, 2] > 40  # yellow-white end of the scale
    assert np.abs(mixed[3, 3] - mixed[3, 3, 0]).max() <= 2  # grey stays grey
    assert np.array_equal(viz.overlay(image, scores, (0.0, 1.0), opacity=0.0), image)


def test_outline_surrounds_the_defect_and_covers_nothing_of_it() -> None:
    image = RNG.integers(0, 200, (30, 30, 3), dtype=np.uint8)
    mask = np.zeros((30, 30), dtype=bool)
    mask[10:15, 12:20] = True
    drawn = viz.outline(image, mask, width=1)
    assert np.array_equal(drawn[mask], image[mask])
    assert (drawn == TRUTH_RGB).all(axis=2).sum() == 2 * (5 + 8)


def test_map_range_is_shared_and_never_empty() -> None:
    assert viz.map_range([np.zeros((4, 4)), np.zeros((4, 4))])[1] > 0
    low, high = viz.map_range([np.zeros((10, 10)), np.full((10, 10), 2.0)])
    assert (low, high) == (pytest.approx(1.0), 2.0)


def test_saved_as_png_and_svg_and_twice_the_same(tmp_path: Path) -> None:
    png, svg = viz.save_figure(viz.score_histogram(SCORES, LABELS, title="a <b> & c"), tmp_path / "h.png", dpi=50)
    assert Image.open(png).size[0] == 300
    assert "a <b> & c" in "".join(ElementTree.parse(svg).getroot().itertext())
    first = svg.read_bytes()
    viz.save_figure(viz.score_histogram(SCORES, LABELS, title="a <b> & c"), tmp_path / "h")
    assert svg.read_bytes() == first


def test_overlay_grid_states_one_scale() -> None:
    images = [np.zeros((16, 16, 3), dtype=np.uint8)] * 7
    figure = viz.overlay_grid(images, [np.eye(8) * i for i in range(7)], masks=[None] * 7, titles=list("abcdefg"))
    bar = figure.axes[-1]
    assert "one scale" in bar.get_ylabel()
    assert bar.get_ylim()[1] == pytest.approx(6.0, rel=0.1)
