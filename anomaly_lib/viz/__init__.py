"""Figures and the HTML report. The only room that draws; matplotlib is loaded when the first figure is made."""

from anomaly_lib.viz.bars import (
    attention_matrix,
    class_bars,
    domain_heatmap,
    k_shot_curves,
    parity_plot,
    training_lines,
)
from anomaly_lib.viz.curves import aupro_curves, roc_and_pr, score_histogram
from anomaly_lib.viz.gallery import failure_gallery, worst_cases
from anomaly_lib.viz.overlays import heat_colours, map_range, outline, overlay, overlay_grid, save_image
from anomaly_lib.viz.style import save_figure

__all__ = [
    "attention_matrix",
    "aupro_curves",
    "class_bars",
    "domain_heatmap",
    "failure_gallery",
    "heat_colours",
    "k_shot_curves",
    "map_range",
    "outline",
    "overlay",
    "overlay_grid",
    "parity_plot",
    "roc_and_pr",
    "save_figure",
    "save_image",
    "score_histogram",
    "training_lines",
    "worst_cases",
]
