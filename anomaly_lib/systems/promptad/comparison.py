"""Two gate experiments side by side (the document's step 6): what changed, and what of the trainings differs."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomaly_lib.detect.tables import Cell, Table
from anomaly_lib.errors import UserError
from anomaly_lib.metrics import bootstrap_ci
from anomaly_lib.systems.promptad.analysis import KEYS, Row

REASONS = {
    "neither": "the same epoch with the same contexts was scored twice",
    "epoch": "the fusion, which is no part of the loss, has chosen another epoch of the same training",
    "contexts": "the same epoch of trainings that differ in their seed, their options or the fused score in the loss",
    "unknown": "the tables do not say which epoch and contexts were scored; measure again with --fresh",
}
BY_CONSTRUCTION = (
    "select=last keeps the last epoch whatever the fusion says, and no fusion is part of the loss: equal seeds give "
    "bit-equal contexts, and the difference is zero by construction. To let the fusion choose: protocol=paper "
    "(select=best-on-test, an oracle) or select=val; to let it teach: fusion_in_loss"
)


@dataclass(frozen=True)
class Comparison:
    """What changed from one experiment to another, in AUROC points."""

    table: Table
    summary: list[str]


def read_results(folder: Path) -> list[Row]:
    """full_results.csv of an experiment (its folder, the analysis folder or the file)."""
    places = [folder, folder / "full_results.csv", folder / "analysis" / "full_results.csv"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(f"{folder}: no analysis/full_results.csv here; run the gate experiment first")
    with path.open(encoding="utf-8", newline="") as stream:
        rows: list[Row] = [dict(row) for row in csv.DictReader(stream)]
    missing = {*KEYS, "mode", "auroc"} - set(rows[0] if rows else {})
    if missing:
        raise UserError(f"{path}: columns {', '.join(sorted(missing))} are missing")
    return rows


def compare(
    first: Sequence[Row], second: Sequence[Row], *, mode: str = "harmonic", keys: Sequence[str] = KEYS
) -> Comparison:
    """Join two experiments on data set, class, k and task for one mode, as the document's pandas snippet does.

    A row also says what of the two trainings differs: the epoch, the contexts of the same epoch, or neither.
    """
    before, after = (
        {tuple(str(row[key]) for key in keys): row for row in rows if row["mode"] == mode} for rows in (first, second)
    )
    shared = sorted(before.keys() & after.keys())
    if not shared:
        raise UserError(f"the two experiments share no (data set, class, k, task) with mode {mode}")
    table = Table([*keys, "auroc_a", "auroc_b", "improvement", "differs"])
    for key in shared:
        a, b = float(before[key]["auroc"]), float(after[key]["auroc"])
        line: dict[str, Cell] = dict(zip(keys, key, strict=True))
        line |= {"auroc_a": a, "auroc_b": b, "improvement": b - a, "differs": difference(before[key], after[key])}
        table.rows.append(line)
    gains = column(table.rows, "improvement")
    summary = [
        f"{len(shared)} shared results, mode {mode} ({len(before) + len(after) - 2 * len(shared)} without a partner)",
        f"mean improvement: {in_words(gains)}",
        f"max improvement: {gains.max():+.2f} ({' '.join(shared[int(gains.argmax())])})",
        f"better in {(gains > 0).mean() * 100:.0f} %, equal in {(gains == 0).mean() * 100:.0f} %",
    ]
    for position, title in ((3, "task"), (0, "data set"), (1, "class")):
        for name in sorted({key[position] for key in shared}):
            summary.append(f"{title} {name}: {in_words(gains[[key[position] == name for key in shared]])}")
    selected = {str(row.get("select")) for rows in (before, after) for key, row in rows.items() if key in shared}
    return Comparison(table, summary + explain(table.rows, selected))


def difference(one: Row, other: Row) -> str:
    """A key of `REASONS`: what of the trainings behind two rows differs."""
    if not one.get("contexts") or not other.get("contexts"):
        return "unknown"
    if one["contexts"] == other["contexts"]:
        return "neither"
    return "epoch" if str(one["epoch"]) != str(other["epoch"]) else "contexts"


def explain(rows: Sequence[dict[str, Cell]], selected: set[str]) -> list[str]:
    """Why the rows differ or do not, a line for each kind of difference."""
    counts = Counter(str(row["differs"]) for row in rows)
    lines = [f"differs, {name}: {counts[name]} of {len(rows)}: {REASONS[name]}" for name in REASONS if counts[name]]
    if counts["neither"] and selected == {"last"}:
        lines.append(BY_CONSTRUCTION)
    odd = [row for row in rows if row["differs"] == "neither" and row["improvement"]]
    return lines + ([f"{len(odd)} of these score differently: other images or another memory"] if odd else [])


def column(rows: Sequence[dict[str, Cell]], name: str) -> np.ndarray:
    """The figures of one column [N]."""
    return np.array([row[name] for row in rows], dtype=float)


def in_words(gains: np.ndarray) -> str:
    """Their mean with its 95 % bootstrap interval."""
    if len(gains) < 2:
        return f"{gains.mean():+.2f} (1 result)"
    interval = bootstrap_ci(lambda values: float(np.mean(values)), gains)
    return f"{gains.mean():+.2f} [{interval.low:+.2f}, {interval.high:+.2f}] ({len(gains)} results)"


def by_task(comparison: Comparison) -> Table:
    """The document's step 6: mean AUROC of both and the improvement with its interval, a row a data set and task."""
    table = Table(["data set", "task", "auroc_a", "auroc_b", "improvement", "differs"])
    groups = dict.fromkeys((row["dataset"], row["task"]) for row in comparison.table.rows)
    for dataset, task in groups:
        rows = [row for row in comparison.table.rows if (row["dataset"], row["task"]) == (dataset, task)]
        counts = Counter(str(row["differs"]) for row in rows)
        line: dict[str, Cell] = {
            "data set": dataset,
            "task": task,
            "improvement": in_words(column(rows, "improvement")),
        }
        line |= {name: float(column(rows, name).mean()) for name in ("auroc_a", "auroc_b")}
        line["differs"] = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        table.rows.append(line)
    return table
