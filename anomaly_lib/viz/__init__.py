"""Figures and the HTML report. The only room that draws; matplotlib is loaded when the first figure is made."""

from anomaly_lib.viz.curves import aupro_curves, roc_and_pr, score_histogram
from anomaly_lib.viz.overlays import heat_colours, map_range, outline, overlay, overlay_grid, save_image
from anomaly_lib.viz.style import save_figure

__all__ = [
    "aupro_curves",
    "heat_colours",
    "map_range",
    "outline",
    "overlay",
    "overlay_grid",
    "roc_and_pr",
    "save_figure",
    "save_image",
    "score_histogram",
]
