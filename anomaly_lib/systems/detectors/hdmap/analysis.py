"""Results of repeated HDMAP experiments: means and deviations per condition, paired tests between conditions."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json, write_text
from anomaly_lib.systems.detectors.hdmap.names import DOMAINS

NUMBERS = ("source_auroc", "avg_target_auroc", "transfer_ratio")


@dataclass
class Condition:
    """All successful repeats of one condition."""

    name: str
    model: str
    source: str
    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in NUMBERS})
    domains: dict[str, list[float]] = field(default_factory=dict)
    sessions: list[str] = field(default_factory=list)  # what pairs repeats of different conditions
    failed: int = 0


def collect(results_dir: Path | str) -> list[Condition]:
    """Every ``result_exp_*.json`` (or the original's ``tensorboard_logs/result_*.json``) below a folder."""
    root = Path(results_dir)
    if not root.is_dir():
        raise UserError(f"results_dir={root}: no such folder")
    paths = {*root.rglob("result_exp_*.json"), *root.rglob("tensorboard_logs/result_*.json")}
    if not paths:
        raise UserError(f"results_dir={root}: no result_exp_*.json below it")
    found: dict[tuple[str, str], Condition] = {}
    for path in sorted(paths):
        result = read_json(path)
        source = result.get("source_domain") or result["condition"]["config"].get("source_domain", "")
        model = str(result.get("model_type", ""))
        condition = found.setdefault(
            (model, result["experiment_name"]), Condition(result["experiment_name"], model, source)
        )
        if result["status"] != "success":
            condition.failed += 1
            continue
        own = float(result["source_results"].get("image_AUROC", result["source_results"].get("test_image_AUROC", 0)))
        mean = float(result["avg_target_auroc"])
        for name, value in zip(NUMBERS, (own, mean, mean / own if own else 0.0), strict=True):
            condition.values[name].append(value)
        condition.domains.setdefault(source, []).append(own)
        for domain, metrics in result["target_results"].items():
            condition.domains.setdefault(domain, []).append(float(metrics["image_AUROC"]))
        condition.sessions.append(f"{path.parent.name}/{result.get('options', {}).get('seed', '')}")
    return list(found.values())


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (nan for a single value)."""
    if not values:
        return math.nan, math.nan
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else math.nan


def summary_rows(conditions: Sequence[Condition]) -> list[dict[str, Any]]:
    rows = []
    for condition in conditions:
        row: dict[str, Any] = {"model": condition.model, "experiment": condition.name, "source": condition.source}
        row |= {"repeats": len(condition.sessions), "failed": condition.failed}
        for name, values in {**condition.values, **condition.domains}.items():
            row[f"{name}_mean"], row[f"{name}_std"] = mean_std(values)
        rows.append(row)
    return sorted(rows, key=lambda r: (r["model"], -r["avg_target_auroc_mean"] if r["repeats"] else 0, r["experiment"]))


def paired_tests(conditions: Sequence[Condition], value: str = "avg_target_auroc") -> list[dict[str, Any]]:
    """Two-sided paired t test and Wilcoxon test between conditions of one model over the repeats both have.

    Holm's correction over all comparisons. Repeats are paired in the order of their sessions.
    """
    from scipy import stats

    rows: list[dict[str, Any]] = []
    for i, first in enumerate(conditions):
        for second in conditions[i + 1 :]:
            count = min(len(first.sessions), len(second.sessions))
            if first.model != second.model or count < 2:
                continue
            a, b = first.values[value][:count], second.values[value][:count]
            difference = [x - y for x, y in zip(a, b, strict=True)]
            same = max(difference) - min(difference) < 1e-12
            t_p = (1.0 if abs(difference[0]) < 1e-12 else 0.0) if same else float(stats.ttest_rel(a, b).pvalue)
            w_p = 1.0 if not any(difference) else float(stats.wilcoxon(a, b).pvalue)
            rows.append(
                {
                    "model": first.model, "first": first.name, "second": second.name, "repeats": count,
                    "mean_difference": sum(difference) / count, "t_test_p": t_p, "wilcoxon_p": w_p,
                }
            )  # fmt: skip
    corrected, running = {}, 0.0
    for rank, place in enumerate(sorted(range(len(rows)), key=lambda k: rows[k]["t_test_p"])):
        running = max(running, min(1.0, rows[place]["t_test_p"] * (len(rows) - rank)))
        corrected[place] = running
    return [{**row, "t_test_p_holm": corrected[place]} for place, row in enumerate(rows)]


def transfer_matrix(conditions: Sequence[Condition], model: str) -> tuple[list[list[float]], list[str]]:
    """Mean AUROC [source, domain] of one model; nan where no experiment trained on that source."""
    table = []
    for source in DOMAINS:
        cells = []
        for target in DOMAINS:
            values = [
                v for c in conditions if c.model == model and c.source == source for v in c.domains.get(target, [])
            ]
            cells.append(mean_std(values)[0])
        table.append(cells)
    return table, list(DOMAINS)


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def analyze(results_dir: Path | str, output: Path | str | None = None) -> list[Path]:
    """Write ``experiment_analysis_summary.csv``, ``paired_tests.csv`` and a transfer matrix per model."""
    from anomaly_lib.viz import domain_heatmap, save_figure

    place = Path(output or results_dir)
    conditions = collect(results_dir)
    written = [place / "experiment_analysis_summary.csv"]
    write_table(written[0], summary_rows(conditions))
    tests = paired_tests(conditions)
    if tests:
        written.append(place / "paired_tests.csv")
        write_table(written[-1], tests)
    for model in sorted({c.model for c in conditions if c.sessions}):
        table, names = transfer_matrix(conditions, model)
        figure = domain_heatmap(table, names, names, title=f"{model}: AUROC, trained on (row), tested on (column)")
        written += save_figure(figure, place / f"transfer_matrix_{model}.png")
    return written
