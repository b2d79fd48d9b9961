"""Tables and figures of gate experiments, and the comparison of two of them (the document's step 6)."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_lib.detect.tables import Cell, Table
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json, write_text
from anomaly_lib.metrics import bootstrap_ci

COLUMNS = [
    "dataset", "class", "k_shot", "task", "mode", "auroc", "semantic_auroc", "memory_auroc", "gap",
    "oracle_semantic_ratio", "oracle_memory_ratio", "trained_fusion", "select", "seed",
]  # fmt: skip
KEYS = ("dataset", "class", "k_shot", "task")
ORACLE_NOTE = "oracle chooses the better branch with the label in hand: an upper bound, not a method"
FAILURE_GAP = 10.0
Row = dict[str, Any]


def collect(folder: Path) -> list[Row]:
    """One row per checkpoint and mode, from the files the gate runs have left."""
    rows: list[Row] = []
    for path in sorted(folder.glob("*/k_*/gate_results/*.json")):
        result = read_json(path)
        common = {name: result[name] for name in (*KEYS, "trained_fusion", "select", "seed")}
        rows += [{**common, "mode": mode, **values} for mode, values in result["modes"].items()]
    if not rows:
        raise UserError(f"{folder}: no gate results yet; run scripts/promptad/run_gate_experiment.py first")
    return sorted(rows, key=lambda row: (row["dataset"], row["class"], row["k_shot"], row["task"]))


def analyse(folder: Path, *, figures: bool = True) -> list[Path]:
    """Write FOLDER/analysis: full_results.csv, averages, failure cases, harmonic discrepancies, figures."""
    rows, out = collect(folder), folder / "analysis"
    write_text(out / "full_results.csv", Table(COLUMNS, rows).csv())
    written = [out / "full_results.csv"]
    for task in ("cls", "seg"):
        chosen = [row for row in rows if row["task"] == task]
        if chosen:
            written += averages(chosen).write(out / f"average_{task}")
    failures = [
        {**row, "branch_gap": row["semantic_auroc"] - row["memory_auroc"]}
        for row in rows
        if row["mode"] == "semantic" and abs(row["semantic_auroc"] - row["memory_auroc"]) > FAILURE_GAP
    ]
    failures.sort(key=lambda row: -abs(row["branch_gap"]))
    columns = [*KEYS, "semantic_auroc", "memory_auroc", "branch_gap"]
    write_text(out / "failure_cases.csv", Table(columns, failures).csv())
    worse = [row for row in rows if row["mode"] == "harmonic" and row["gap"] < 0]
    worse.sort(key=lambda row: float(row["gap"]))
    columns = [*KEYS, "auroc", "semantic_auroc", "memory_auroc", "gap"]
    write_text(out / "harmonic_discrepancy.csv", Table(columns, worse).csv())
    written += [out / "failure_cases.csv", out / "harmonic_discrepancy.csv"]
    return written + (draw(rows, out) if figures else [])


def averages(rows: Sequence[Row]) -> Table:
    """Mean AUROC over classes per data set and k, a column a mode."""
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    table = Table(["config", *modes, "classes"], notes=[ORACLE_NOTE] if "oracle" in modes else [])
    for dataset, k in sorted({(row["dataset"], row["k_shot"]) for row in rows}):
        chosen = [row for row in rows if (row["dataset"], row["k_shot"]) == (dataset, k)]
        line: dict[str, Cell] = {"config": f"{dataset}_k{k}", "classes": len({row["class"] for row in chosen})}
        line |= {mode: float(np.mean([row["auroc"] for row in chosen if row["mode"] == mode])) for mode in modes}
        table.rows.append(line)
    return table


def draw(rows: Sequence[Row], out: Path) -> list[Path]:
    """Bars per class and AUROC against k, for each task."""
    from anomaly_lib.viz import class_bars, k_shot_curves, save_figure

    written: list[Path] = []
    for task in ("cls", "seg"):
        chosen = [row for row in rows if row["task"] == task and row["mode"] != "oracle"]
        if not chosen:
            continue
        modes = list(dict.fromkeys(row["mode"] for row in chosen))
        largest = max(row["k_shot"] for row in chosen)
        bars = {m: {r["class"]: r["auroc"] for r in chosen if r["mode"] == m and r["k_shot"] == largest} for m in modes}
        written += save_figure(
            class_bars(bars, metric="AUROC (%)", title=f"{task}, k={largest}"), out / f"classes_{task}"
        )
        if len({row["k_shot"] for row in chosen}) > 1:
            curves: dict[str, dict[int, list[float]]] = {m: {} for m in modes}
            for row in chosen:
                curves[row["mode"]].setdefault(row["k_shot"], []).append(row["auroc"])
            written += save_figure(k_shot_curves(curves, metric="AUROC (%)", title=task), out / f"shots_{task}")
    return written


# -- two experiments side by side -----------------------------------------------------------------------------------


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


def compare(first: Sequence[Row], second: Sequence[Row], *, mode: str = "harmonic") -> Comparison:
    """Join two experiments on data set, class, k and task for one mode, as the document's pandas snippet does."""
    before = {tuple(str(row[key]) for key in KEYS): float(row["auroc"]) for row in first if row["mode"] == mode}
    after = {tuple(str(row[key]) for key in KEYS): float(row["auroc"]) for row in second if row["mode"] == mode}
    shared = sorted(before.keys() & after.keys())
    if not shared:
        raise UserError(f"the two experiments share no (data set, class, k, task) with mode {mode}")
    table = Table([*KEYS, "auroc_a", "auroc_b", "improvement"])
    for key in shared:
        line: dict[str, Cell] = dict(zip(KEYS, key, strict=True))
        table.rows.append(
            line | {"auroc_a": before[key], "auroc_b": after[key], "improvement": after[key] - before[key]}
        )
    gains = np.array([after[key] - before[key] for key in shared])
    summary = [
        f"{len(shared)} shared results, mode {mode} ({len(before) + len(after) - 2 * len(shared)} without a partner)"
    ]
    summary += [
        _line("mean improvement", gains),
        f"max improvement: {gains.max():+.2f} ({' '.join(shared[int(gains.argmax())])})",
    ]
    summary.append(f"better in {(gains > 0).mean() * 100:.0f} %, equal in {(gains == 0).mean() * 100:.0f} %")
    for position, title in ((3, "task"), (0, "data set"), (1, "class")):
        for name in sorted({key[position] for key in shared}):
            summary.append(_line(f"{title} {name}", gains[[key[position] == name for key in shared]]))
    return Comparison(table, summary)


def _line(title: str, gains: np.ndarray) -> str:
    if len(gains) < 2:
        return f"{title}: {gains.mean():+.2f} (1 result)"
    interval = bootstrap_ci(lambda values: float(np.mean(values)), gains)
    return f"{title}: {gains.mean():+.2f} [{interval.low:+.2f}, {interval.high:+.2f}] ({len(gains)} results)"
