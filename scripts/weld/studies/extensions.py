"""What each training-time extension of V4 changes, measured like model D of the ladder: same data, same protocol.

One row per variant and seed, appended as it is done, so that an interrupted study goes on.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from anomaly_lib.config import arg
from anomaly_lib.errors import UserError
from anomaly_lib.systems.weld.supcon.detector import load_detector
from anomaly_lib.systems.weld.supcon.options import Args as QuadArgs
from anomaly_lib.systems.weld.supcon.options import resolve
from anomaly_lib.systems.weld.supcon.task import apply_freeze
from anomaly_lib.systems.weld.supcon.train import train
from scripts.weld.studies.baselines import Pool, prepare
from scripts.weld.studies.ladder import spread
from scripts.weld.studies.ladder_options import Args as LadderArgs
from scripts.weld.studies.study_rows import StudyRows

# name in the table -> the options that switch it on
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "frozen-attention": {"freeze": "heads"},
    "lora": {"freeze": "heads", "adapters": "lora"},
    "bottleneck": {"freeze": "heads", "adapters": "adapter"},
    "hardest-half": {"hard_negatives": 0.5},
    "hardness-1": {"hardness": 1.0},
    "simclr-first": {"pretrain": "simclr"},
    "masked-first": {"pretrain": "masked"},
    "reconstruction": {"reconstruct_weight": 0.1},
    "mixup": {"mixup": 0.2},
    "queue": {"queue": 96, "accumulate": 2},
    "contrast-only": {"loss_type": "supcon"},
}
COLUMNS = {"knn_accuracy": "k-NN accuracy", "knn_macro_f1": "k-NN macro-F1", "image_auroc": "AUROC"}


@dataclass
class Args(LadderArgs):
    """Which extensions, on the data of the ladder."""

    variants: list[str] = arg(list(VARIANTS), "which variants of model D")


def run_extensions(args: Args, say: Callable[[str], object], *, pool: Pool | None = None) -> list[dict[str, Any]]:
    """Every variant and seed that the table does not hold yet; returns all rows. `pool` shares an encoding."""
    args = cast(Args, resolve(args))
    unknown = sorted(set(args.variants) - set(VARIANTS))
    if unknown:
        raise UserError(f"--variants {' '.join(unknown)}: choose from {', '.join(VARIANTS)}")
    folder = Path(args.results or "runs/weld_extensions")
    study = StudyRows(folder, "variant", fresh=args.fresh)
    for seed in args.seeds:
        for variant in args.variants:
            if study.has(variant, seed):
                continue
            pool = pool or prepare(args)
            row = measure(args, pool, variant, seed, folder / f"{variant}-seed{seed}")
            study.add(row)
            say(f"{variant} seed {seed}: " + ", ".join(f"{label} {row[name]}" for name, label in COLUMNS.items()))
    return study.finish(args.variants, args.seeds, table, say)


def measure(args: Args, pool: Pool, variant: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train one variant and judge it on TEST."""
    known = {name: getattr(args, name) for name in QuadArgs.__dataclass_fields__}
    own = QuadArgs(**{**known, **VARIANTS[variant], "seed": seed, "output_dir": str(folder)})
    started = time.process_time()
    result = train(own, features=pool.features)
    seconds = time.process_time() - started
    assert result.checkpoint is not None
    detector = load_detector(result.checkpoint, features=pool.features)
    learning = set(apply_freeze(own, detector.task, 0))
    return {
        "variant": variant,
        "seed": seed,
        **{name: round(result.metrics[name], 4) for name in COLUMNS},
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
