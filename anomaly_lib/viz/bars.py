"""Figures over classes, shots, domains and training: bars, lines and heat tables."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from anomaly_lib.viz.style import MARKERS, SERIES, new_figure, readable_text_on, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def class_bars(
    values: Mapping[str, Mapping[str, float]],
    *,
    metric: str = "AUROC",
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    title: str = "",
) -> "Figure":
    """values[run][class]: a group of horizontal bars a class, a colour a run, with intervals where given."""
    classes = list(dict.fromkeys(name for run in values.values() for name in run))
    figure, axes = new_figure(6.4, 1.2 + 0.30 * len(classes) * (0.6 + 0.4 * len(values)))
    axis = axes[0, 0]
    height = 0.8 / max(len(values), 1)
    for index, (run, row) in enumerate(values.items()):
        places = np.arange(len(classes)) + (index - (len(values) - 1) / 2) * height
        lengths = np.array([row.get(name, np.nan) for name in classes])
        bounds = np.array([(intervals or {}).get(run, {}).get(name, (np.nan, np.nan)) for name in classes])
        errors = np.abs(bounds.T - lengths) if intervals and run in intervals else None
        colour = SERIES[index % len(SERIES)]
        hatch = ("", "///", "...", "xxx")[index % 4]  # the runs stay apart in grey print
        axis.barh(places, lengths, height * 0.92, xerr=errors, color=colour, alpha=0.75, hatch=hatch, label=run,
                  error_kw={"elinewidth": 1.1, "capsize": 2})  # fmt: skip
        for place, length in zip(places, lengths, strict=True):
            if not np.isnan(length):
                axis.text(0.005, place, f" {length:.3f}", va="center", fontsize=9, transform=axis.get_yaxis_transform(),
                          bbox={"facecolor": "white", "alpha": 0.85, "pad": 0.6, "edgecolor": "none"})  # fmt: skip
    axis.set_yticks(range(len(classes)), classes)
    axis.invert_yaxis()
    shown = [v for row in values.values() for v in row.values() if not np.isnan(v)]
    axis.set_xlim(0 if not shown or min(shown) < 0.5 else 0.4, 1.0 if not shown or max(shown) <= 1 else None)
    axis.set_xlabel(metric)
    if title:
        axis.set_title(title, loc="left")
    if len(values) > 1:
        figure.legend(loc="outside lower center", ncols=3)
    return figure


@styled
def k_shot_curves(
    values: Mapping[str, Mapping[int, Sequence[float]]], *, metric: str = "AUROC", title: str = ""
) -> "Figure":
    """values[name][k] = results over seeds or classes: their mean against k, with the range shaded."""
    figure, axes = new_figure(6.0, 3.8)
    axis = axes[0, 0]
    ticks = sorted({k for row in values.values() for k in row})
    for index, (name, row) in enumerate(values.items()):
        shots = sorted(row)
        means = [float(np.mean(row[k])) for k in shots]
        colour = SERIES[index % len(SERIES)]
        axis.plot(shots, means, color=colour, marker=MARKERS[index % len(MARKERS)], label=name)
        spread = [(min(row[k]), max(row[k])) for k in shots]
        axis.fill_between(shots, *np.transpose(spread), color=colour, alpha=0.12, linewidth=0)
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(k) for k in ticks])
    axis.minorticks_off()
    axis.set(xlabel="support images k", ylabel=metric)
    if title:
        axis.set_title(title, loc="left")
    axis.legend()
    return figure


@styled
def domain_heatmap(
    values: Any, rows: Sequence[str], columns: Sequence[str], *, metric: str = "AUROC", title: str = ""
) -> "Figure":
    """A table [rows, columns] of figures on a colour scale, each written into its cell; nan cells stay empty."""
    import matplotlib

    table = np.asarray(values, dtype=float)
    figure, axes = new_figure(1.8 + 0.85 * len(columns), 1.3 + 0.55 * len(rows))
    axis = axes[0, 0]
    axis.grid(visible=False)
    low, high = (np.nanmin(table), np.nanmax(table)) if np.isfinite(table).any() else (0.0, 1.0)
    image = axis.imshow(table, cmap="cividis", vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            colour = matplotlib.colormaps["cividis"](image.norm(value))
            axis.text(column, row, f"{value:.3f}", ha="center", va="center", color=readable_text_on(colour[:3]))
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.set(xlabel="target", ylabel="source")
    if title:
        axis.set_title(title, loc="left")
    figure.colorbar(image, ax=axis, label=metric)
    return figure


@styled
def training_lines(
    series: Mapping[str, Sequence[float]],
    *,
    x: Sequence[float] | None = None,
    xlabel: str = "epoch",
    ylabel: str = "value",
    title: str = "",
    log_y: bool = False,
) -> "Figure":
    """Named quantities over epochs (losses, text_scale, gate values, ...): a colour, dash and marker each."""
    figure, axes = new_figure(6.4, 3.8)
    axis = axes[0, 0]
    for index, (name, values) in enumerate(series.items()):
        places = np.arange(1, len(values) + 1) if x is None else np.asarray(x)
        every = max(1, len(values) // 12)
        dash = ("-", "--", "-.")[index // len(SERIES) % 3]
        axis.plot(places, values, color=SERIES[index % len(SERIES)], marker=MARKERS[index % len(MARKERS)],
                  markevery=every, markersize=5, linestyle=dash, label=name)  # fmt: skip
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.xaxis.get_major_locator().set_params(integer=x is None or np.array_equal(np.asarray(x), np.round(x)))
    if log_y:
        axis.set_yscale("log")
    if title:
        axis.set_title(title, loc="left")
    if len(series) > 1:
        figure.legend(loc="outside right upper")
    return figure


@styled
def attention_matrix(weights: Any, rows: Sequence[str], columns: Sequence[str], *, title: str = "") -> "Figure":
    """Attention weights [rows, columns]; brighter means more."""
    table = np.asarray(weights, dtype=float)
    figure, axes = new_figure(2.0 + 0.32 * len(columns), 1.6 + 0.30 * len(rows))
    axis = axes[0, 0]
    axis.grid(visible=False)
    image = axis.imshow(table, cmap="cividis", vmin=0, aspect="auto")
    axis.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=8)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    if title:
        axis.set_title(title, loc="left")
    figure.colorbar(image, ax=axis, label="attention")
    return figure


@styled
def parity_plot(predicted: Any, target: Any, *, unit: str = "", title: str = "") -> "Figure":
    """Predicted against true values of a regression, with the line of equality and the mean absolute error."""
    predicted, target = np.asarray(predicted, dtype=float), np.asarray(target, dtype=float)
    figure, axes = new_figure(4.6, 4.4)
    axis = axes[0, 0]
    axis.scatter(target, predicted, s=14, alpha=0.5, color=SERIES[0], linewidth=0)
    ends = [min(target.min(), predicted.min()), max(target.max(), predicted.max())]
    axis.plot(ends, ends, color="black", linewidth=1, linestyle="--", label="predicted = true")
    error = float(np.abs(predicted - target).mean())
    axis.set(xlabel=f"true {unit}".strip(), ylabel=f"predicted {unit}".strip())
    axis.set_title(f"{title}  MAE {error:.4g} {unit}".strip(), loc="left")
    axis.legend()
    return figure
