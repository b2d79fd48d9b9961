"""One look for every figure: colour-blind-safe colours, readable at README size, written as PNG and SVG.

matplotlib is imported inside the functions: importing this room costs nothing, and figures use the object interface, so
no global backend or style is touched.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from anomaly_lib.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")

# Okabe and Ito's palette: told apart with every common kind of colour vision, and in grey print by its lightness.
NORMAL, ANOMALOUS = "#0072B2", "#D55E00"
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#8C6D1F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
TRUTH_RGB = (0, 230, 255)  # outline of the true defect: a hue that the heat map does not contain
REGION_RGB = (120, 255, 60)  # outline of what the detector calls anomalous
HEAT = "inferno"  # monotone in lightness: order is visible without colour

RC: dict[str, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "svg.fonttype": "none",  # text stays text: searchable, and small
    "svg.hashsalt": "anomaly_lib",  # the same figure gives the same file
    "figure.dpi": 110,
}


def new_figure(
    width: float = 6.0, height: float = 4.0, *, rows: int = 1, columns: int = 1, **subplots: Any
) -> tuple["Figure", np.ndarray]:
    """A figure and its axes [rows, columns]; call it in a `styled` function."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **subplots)


def styled(draw: Callable[P, "Figure"]) -> Callable[P, "Figure"]:
    """Decorates a function that draws a figure: it runs under this library's settings and leaves the user's alone."""

    @wraps(draw)
    def with_style(*args: P.args, **kwargs: P.kwargs) -> "Figure":
        import matplotlib

        with matplotlib.rc_context(RC):
            return draw(*args, **kwargs)

    return with_style


def save_figure(
    figure: "Figure", path: Path | str, *, dpi: int = 150, formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Write `path` (its suffix is ignored) once per format; returns the paths."""
    import matplotlib

    settings: dict[str, dict[str, Any]] = {
        "png": {"dpi": dpi},
        "svg": {"metadata": {"Date": None}},
        "pdf": {"metadata": {"CreationDate": None}},
    }
    written = []
    for name in formats:
        target = Path(path).with_suffix(f".{name}")
        with matplotlib.rc_context(RC), atomic_file(target) as stream:
            figure.savefig(stream, format=name, facecolor="white", **settings[name])
        written.append(target)
    return written


@lru_cache(maxsize=4)
def heat_table(name: str = HEAT) -> np.ndarray:
    """[256, 3] uint8 colours of a matplotlib colour map."""
    import matplotlib

    return np.round(matplotlib.colormaps[name](np.arange(256))[:, :3] * 255).astype(np.uint8)


def readable_text_on(colour: tuple[float, ...]) -> str:
    """Black or white, whichever has the better contrast on an RGB colour in [0, 1]."""
    luminance = 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]
    return "black" if luminance > 0.45 else "white"
