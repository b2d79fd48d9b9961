"""What each training-time extension of V4 changes, measured like model D of the ladder: same data, same protocol.

One row per variant and seed, appended as it is done, so that an interrupted study goes on.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_lib.files import read_json
from anomaly_lib.systems.weld.supcon.task import apply_freeze
from scripts.weld.studies.baselines import Pool, fit_model, prepare
from scripts.weld.studies.ladder import spread
from scripts.weld.studies.options import VARIANTS, ExtensionArgs
from scripts.weld.studies.study_rows import StudyRows

COLUMNS = {"knn_accuracy": "k-NN accuracy", "knn_macro_f1": "k-NN macro-F1", "image_auroc": "AUROC"}


def run_extensions(
    args: ExtensionArgs, say: Callable[[str], object], *, pool: Pool | None = None
) -> list[dict[str, Any]]:
    """Every variant and seed that the table does not hold yet; returns all rows. `pool` shares an encoding."""
    folder = Path(args.results)
    study = StudyRows(folder, "variant", args)
    for seed in args.seeds:
        for variant in args.variants:
            if study.has(variant, seed):
                continue
            pool = pool or prepare(args)
            row = measure(args, pool, variant, seed, folder / f"{variant}-seed{seed}")
            study.add(row)
            say(f"{variant} seed {seed}: " + ", ".join(f"{label} {row[name]}" for name, label in COLUMNS.items()))
    return study.finish(args.variants, args.seeds, table, say)


def measure(args: ExtensionArgs, pool: Pool, variant: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train one variant and judge it on TEST."""
    own = args.of_model(**VARIANTS[variant], seed=seed, output_dir=str(folder))
    started = time.process_time()
    detector = fit_model(pool, own)
    seconds = time.process_time() - started
    metrics = read_json(folder / "run.json")["metrics"]
    learning = set(apply_freeze(own, detector.task, 0))
    return {
        "variant": variant,
        "seed": seed,
        **{name: round(metrics[name], 4) for name in COLUMNS},
        "trained_parameters": sum(p.numel() for name, p in detector.task.named_parameters() if name in learning),
        "seconds": round(seconds, 2),
    }


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: mean +- std over seeds, trained parameters and CPU seconds."""
    lines = [f"| variant | {' | '.join(COLUMNS.values())} | trained parameters | CPU s |", "|---" * 6 + "|"]
    for variant in VARIANTS:
        mine = [row for row in rows if row["variant"] == variant]
        if not mine:
            continue
        cells = [spread([row[name] for row in mine]) for name in COLUMNS]
        cells += [f"{mine[0]['trained_parameters']:,}", f"{np.mean([row['seconds'] for row in mine]):.1f}"]
        lines.append(f"| {' | '.join([variant, *cells])} |")
    return lines
