"""The baseline ladder A-D on one split with one protocol, as one table.

One row per model and seed, appended as it is done, so that an interrupted study goes on. Every number is from TEST;
thresholds and fusion weights come from VAL.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_lib.engine.memory import PeakMemory
from anomaly_lib.engine.seed import seed_everything
from anomaly_lib.metrics import auroc, average_precision, f1_max, macro_f1, youden
from anomaly_lib.systems.weld.data.manifest import CLASSES
from anomaly_lib.systems.weld.options import ENCODERS
from scripts.weld.studies.baselines import Fitted, Pool, cross_attention, mid_frozen, model_a, prepare
from scripts.weld.studies.options import FUSIONS, LadderArgs
from scripts.weld.studies.single import late, mid, one_modality, sensors_alone, tuned
from scripts.weld.studies.study_rows import StudyRows

COLUMNS = {"auroc": "AUROC", "auprc": "AUPRC", "macro_f1": "macro-F1, good/defect", "class_f1": "macro-F1, 12 classes"}


def ladder() -> dict[str, Callable[[Pool, LadderArgs], Fitted]]:
    """Every model by its name in the table."""
    frozen = {f"B-{name}": (lambda pool, args, name=name: one_modality(pool, args, name)) for name in ENCODERS}
    learnt = {f"B-{name}-tuned": (lambda pool, args, name=name: tuned(pool, args, name)) for name in ENCODERS}
    single = {**frozen, **learnt, "B-sensors": sensors_alone}
    mixed = {"C-late": late, "C-mid": mid, "C-mid-frozen": mid_frozen}
    return {"A": model_a, **single, **mixed, "D": cross_attention}


def row_of(pool: Pool, fitted: Fitted, *, model: str, seed: int, seconds: float, peak_mb: float) -> dict[str, Any]:
    """What the table keeps of one model and seed."""
    scores, labels, classes = fitted.scores["test"], pool.labels("test"), pool.classes("test")
    _, threshold = youden(fitted.scores["val"], pool.labels("val"))
    each = {}
    for index, name in enumerate(CLASSES[1:], start=1):
        chosen = (classes == 0) | (classes == index)
        if bool((classes == index).any()):
            each[name] = round(auroc(scores[chosen], labels[chosen]), 4)
    return {
        "model": model,
        "seed": seed,
        "auroc": round(auroc(scores, labels), 4),
        "auprc": round(average_precision(scores, labels), 4),
        "f1_max": round(f1_max(scores, labels), 4),
        "macro_f1": round(macro_f1((scores >= threshold).long(), labels), 4),
        "class_f1": None if fitted.classes is None else round(macro_f1(fitted.classes, classes), 4),
        "per_defect": each,
        "parameters": fitted.parameters,
        "seconds": round(seconds, 2),
        "peak_mb": round(peak_mb, 1),
        "note": fitted.note,
    }


def run_ladder(args: LadderArgs, say: Callable[[str], object]) -> list[dict[str, Any]]:
    """Every model and seed that the table does not hold yet; returns all rows."""
    models = ladder()
    chosen = [name for one in args.models for name in (FUSIONS if one == "fusion" else [one])]
    wanted = list(dict.fromkeys(chosen))
    study = StudyRows(Path(args.results), "model", args)
    todo = [(model, seed) for model in wanted for seed in args.seeds if not study.has(model, seed)]
    pool = prepare(args) if todo else None
    for model, seed in todo:
        assert pool is not None
        seed_everything(seed)
        started = time.process_time()
        with PeakMemory(pool.features.device) as peak:
            fitted = models[model](pool, args.seeded(seed))
        seconds = time.process_time() - started
        row = row_of(pool, fitted, model=model, seed=seed, seconds=seconds, peak_mb=peak.mb)
        study.add(row)
        say(f"{model} seed {seed}: AUROC {row['auroc']:.4f} in {row['seconds']:.1f} s {row['note']}")
    return study.finish(wanted, args.seeds, table, say)


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: mean +- std over seeds and the gain over A; CPU seconds and megabytes of fitting on cached features."""
    by_model = {name: mine for name in ladder() if (mine := [row for row in rows if row["model"] == name])}
    base = np.mean([row["auroc"] for row in by_model.get("A", [])] or [np.nan])
    lines = [
        f"| model | {' | '.join(COLUMNS.values())} | gain over A | parameters | CPU s | peak MB |",
        "|---" * (len(COLUMNS) + 5) + "|",
    ]
    for model, mine in by_model.items():
        cells = [spread([row[name] for row in mine if row[name] is not None]) for name in COLUMNS]
        gain = np.mean([row["auroc"] for row in mine]) - base
        seconds, memory = (np.mean([row[name] for row in mine]) for name in ("seconds", "peak_mb"))
        cells += [f"{gain:+.3f}", f"{mine[0]['parameters']:,}", f"{seconds:.1f}", f"{memory:.0f}"]
        lines.append(f"| {' | '.join([model, *cells])} |")
    names = [name for name in CLASSES if any(name in row["per_defect"] for row in rows)]
    lines += ["", "| AUROC of each defect | " + " | ".join(by_model) + " |", "|---" * (len(by_model) + 1) + "|"]
    for name in names:
        found = [[row["per_defect"][name] for row in mine if name in row["per_defect"]] for mine in by_model.values()]
        lines.append(f"| {name} | " + " | ".join(spread(values) for values in found) + " |")
    return lines


def spread(values: Sequence[float]) -> str:
    """Mean +- population standard deviation, or a dash."""
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}" if values else "-"
