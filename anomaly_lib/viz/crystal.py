"""Figures of the crystal system: learned scales, gates by atom and element, predicted against true."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from anomaly_lib.viz.style import ANOMALOUS, MARKERS, NORMAL, SERIES, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE_BORDERS = (10, 20, 50, 100)


@styled
def text_scale_figure(
    epochs: Sequence[int], scales: Mapping[str, Sequence[float]], start: float | None = None
) -> "Figure":
    """Each fusion module's learned scale over the epochs (`start` is a line), and its step from epoch to epoch."""
    figure, axes = new_figure(10, 4, columns=2)
    for index, (name, values) in enumerate(scales.items()):
        colour, marker = SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]
        every = max(1, len(values) // 12)
        axes[0, 0].plot(epochs, values, color=colour, marker=marker, markevery=every, label=name)
        axes[0, 1].plot(epochs[1:], np.diff(values), color=colour, marker=marker, markevery=every)
    if start is not None:
        axes[0, 0].axhline(start, color="#888888", linestyle="--", label=f"start ({start:g})")
    axes[0, 0].set(xlabel="epoch", ylabel="text_scale", title="Learned scale of the text")
    axes[0, 0].legend()
    axes[0, 1].axhline(0, color="#888888", linewidth=1)
    axes[0, 1].set(xlabel="epoch", ylabel="change since the last epoch", title="How fast it moves")
    return figure


@styled
def gate_analysis_figure(alphas: Sequence[np.ndarray], targets: np.ndarray, label: str = "target") -> "Figure":
    """Alpha of all atoms, by cell size, by target third, and against the target. Large alpha = much text."""
    figure, axes = new_figure(11, 8, rows=2, columns=2)
    every_atom = np.concatenate(list(alphas))
    means = np.array([values.mean() for values in alphas])
    axis = axes[0, 0]
    axis.hist(every_atom, bins=40, color=NORMAL)
    for border in (0.3, 0.7):
        axis.axvline(border, color="#888888", linestyle="--")
    axis.set(xlabel="alpha", ylabel="atoms", xlim=(0, 1), title=f"All atoms (mean {every_atom.mean():.3f})")
    top = axis.get_ylim()[1]
    for border, text, side in ((0.3, "graph", "right"), (0.7, "text", "left")):
        axis.text(border, top * 0.97, f" {text} dominates ", ha=side, va="top", fontsize=9)
    sizes = np.array([len(values) for values in alphas])
    group = np.digitize(sizes, SIZE_BORDERS)
    names = ["< 10", "10-19", "20-49", "50-99", ">= 100"]
    shown = [g for g in range(len(names)) if (group == g).any()]
    axis = axes[0, 1]
    boxes = axis.boxplot([means[group == g] for g in shown], patch_artist=True, widths=0.6)
    for box in boxes["boxes"]:
        box.set(facecolor=SERIES[5], edgecolor="black")
    axis.set_xticks(range(1, len(shown) + 1), [f"{names[g]}\n(n={int((group == g).sum())})" for g in shown])
    axis.set(xlabel="atoms in the cell", ylabel="mean alpha of a crystal", title="By cell size")
    axis = axes[1, 0]
    thirds = np.array_split(np.argsort(targets), 3)
    parts = axis.violinplot([means[third] for third in thirds if len(third)], showmedians=True)
    for body in parts["bodies"]:  # type: ignore[attr-defined]
        body.set(facecolor=SERIES[2], alpha=0.6)
    axis.set_xticks(range(1, 4), ["lowest third", "middle", "highest third"])
    axis.set(xlabel=label, ylabel="mean alpha of a crystal", title="By target")
    axis = axes[1, 1]
    axis.scatter(targets, means, s=14, color=NORMAL, alpha=0.6, linewidths=0)
    title = "No variation to correlate"
    if means.std() > 0 and targets.std() > 0:
        slope, offset = np.polyfit(targets, means, 1)
        ends = np.array([targets.min(), targets.max()])
        axis.plot(ends, slope * ends + offset, color=ANOMALOUS)
        title = f"Correlation r = {np.corrcoef(targets, means)[0, 1]:+.2f} (n={len(means)})"
    axis.set(xlabel=label, ylabel="mean alpha of a crystal", title=title)
    return figure


@styled
def alpha_by_element_figure(rows: Sequence[tuple[str, float, float, int]]) -> "Figure":
    """Mean alpha of each element with its standard deviation over atoms; `rows` sorted by mean."""
    figure, axes = new_figure(max(6.0, 0.28 * len(rows) + 1.5), 4)
    axis = axes[0, 0]
    position = np.arange(len(rows))
    mean, std = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    axis.errorbar(position, mean, yerr=std, fmt="o", color=NORMAL, ecolor="#AAAAAA", capsize=2)
    axis.set_xticks(position, [row[0] for row in rows], rotation=90 if len(rows) > 20 else 0)
    axis.set(ylabel="alpha (large = much text)", title="Gate by element: mean and standard deviation over atoms")
    return figure


@styled
def alpha_heatmap_figure(alphas: Sequence[np.ndarray], names: Sequence[str], *, most_atoms: int = 15) -> "Figure":
    """Atom by atom: the two crystals with the lowest, middle and highest mean alpha."""
    order = np.argsort([values.mean() for values in alphas])
    middle = len(order) // 2
    chosen = list(dict.fromkeys([*order[:2], *order[max(0, middle - 1) : middle + 1], *order[-2:]]))
    width = min(most_atoms, max(len(alphas[i]) for i in chosen))
    grid = np.full((len(chosen), width), np.nan)
    for row, index in enumerate(chosen):
        values = alphas[index][:width]
        grid[row, : len(values)] = values
    figure, axes = new_figure(8, 0.5 * len(chosen) + 1.5)
    axis = axes[0, 0]
    image = axis.imshow(grid, aspect="auto", cmap="viridis")
    axis.grid(visible=False)
    axis.set_yticks(range(len(chosen)), [str(names[i]) for i in chosen])
    axis.set(xlabel="atom", title="Alpha of single atoms: lowest, middle and highest crystals")
    figure.colorbar(image, ax=axis, label="alpha")
    return figure
