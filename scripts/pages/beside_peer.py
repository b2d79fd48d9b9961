"""The table of the real-data check: this library's detectors beside anomalib's on the same images and weights."""

from collections.abc import Mapping
from statistics import mean, stdev
from typing import Any

METRICS = ("image_auroc", "pixel_auroc", "aupro")


WHAT = ("category", "model", "coreset_ratio", "size", "widths", "epochs", "batch_size", "learning_rate")


def what(category: str, opts: Any) -> dict[str, Any]:
    """The part of a row that says what is measured with the options of a detector; others lie in the row beside it."""
    row = {"category": category, "model": opts.model, "size": opts.image_size[0], "seed": opts.seed}
    row["coreset_ratio"] = getattr(opts, "coreset_ratio", None)
    if hasattr(opts, "epochs"):
        row |= {name: getattr(opts, name) for name in ("epochs", "batch_size", "learning_rate")}
    if hasattr(opts, "repair_width"):
        row["widths"] = [opts.repair_width, opts.segment_width]
    return row


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells measurements apart; all but the last, the seed, are one row of the table."""
    return *(str(row.get(name)) for name in WHAT), row["seed"]


def name_of(row: Mapping[str, Any]) -> str:
    """The detector of a row and what is not as everywhere in the table."""
    name = row["model"] if row["coreset_ratio"] is None else f"{row['model']} {100 * row['coreset_ratio']:g} %"
    if "epochs" not in row:
        return str(name)
    widths = f" of widths {'/'.join(map(str, row['widths']))}" if "widths" in row else ""
    return f"{name}{widths}, {row['size']} px, {row['epochs']} epochs"


def cell(rows: list[dict[str, Any]], side: str, metric: str) -> str:
    """Mean ± sample deviation over seeds, in per cent."""
    values = [100 * row[side][metric] for row in rows if side in row]
    if not values:
        return "-"
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def measured(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The seeds of each category and detector, in the table's order."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(key(row)[:-1], []).append(row)
    return [members for _, members in sorted(groups.items())]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row for each category, detector and side."""
    lines = ["| category | detector | | image AUROC | pixel AUROC | AUPRO |", "|" + "---|" * 6]
    for members in measured(rows):
        for side in ("here", "anomalib", "same_draws", "same_draws_our_resize"):
            if side in members[0]:
                cells = [cell(members, side, metric) for metric in METRICS]
                about = f"{side.replace('_', ' ')} ({len(members)})" if side == "here" else side.replace("_", " ")
                lines.append("| " + " | ".join([members[0]["category"], name_of(members[0]), about, *cells]) + " |")
    gaps = [row[f"same_draws_largest_{k}_difference"] for row in rows if "same_draws" in row for k in ("score", "map")]
    found = f" With the same draws, scores and maps agree to {max(gaps):.0e} of their maximum." if gaps else ""
    return "\n".join([*lines, "", f"Percent; mean ± deviation over (n) seeds from 0; commits are in the JSON.{found}"])
