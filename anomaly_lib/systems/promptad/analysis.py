"""Tables and figures of gate experiments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_lib.detect.tables import Cell, Table
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json, write_text

COLUMNS = [
    "dataset", "class", "k_shot", "task", "mode", "auroc", "semantic_auroc", "memory_auroc", "gap",
    "oracle_semantic_ratio", "oracle_memory_ratio", "trained_fusion", "select", "seed", "epoch", "contexts",
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
        common = {name: result.get(name) for name in (*KEYS, *COLUMNS[-5:])}  # the last two are missing in old files
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
