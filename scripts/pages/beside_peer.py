"""The table of the real-data check: this library's detectors beside anomalib's on the same images and weights."""

from statistics import mean, stdev
from typing import Any

METRICS = ("image_auroc", "pixel_auroc", "aupro")


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells measurements apart; all but the last, the seed, are one row of the table."""
    return row["category"], row["model"], row["coreset_ratio"], row["size"], row["seed"]


def cell(rows: list[dict[str, Any]], side: str, metric: str) -> str:
    """Mean ± sample deviation over seeds, in per cent."""
    values = [100 * row[side][metric] for row in rows if side in row]
    if not values:
        return "-"
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row for each category, detector and side."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(key(row)[:4], []).append(row)
    lines = ["| category | detector | | image AUROC | pixel AUROC | AUPRO |", "|" + "---|" * 6]
    for (category, model, ratio, *_), members in sorted(groups.items(), key=str):
        name = model if ratio is None else f"{model} {100 * ratio:g} %"
        for side in ("here", "anomalib", "same_draws", "same_draws_our_resize"):
            if side in members[0]:
                cells = [cell(members, side, metric) for metric in METRICS]
                about = f"{side.replace('_', ' ')} ({len(members)})" if side == "here" else side.replace("_", " ")
                lines.append("| " + " | ".join([category, name, about, *cells]) + " |")
    gaps = [row[f"same_draws_largest_{k}_difference"] for row in rows if "same_draws" in row for k in ("score", "map")]
    found = f" With the same draws, scores and maps agree to {max(gaps):.0e} of their maximum." if gaps else ""
    return "\n".join([*lines, "", f"Percent; mean ± deviation over (n) seeds from 0; commits are in the JSON.{found}"])
