"""What each extension of V4 changes, measured like model D of the ladder: same data, same protocol, in one table.

One row per variant and seed, appended as it is done, so that an interrupted study goes on. An epoch is chosen on VAL,
every number is from TEST, and a variant is compared with the plain model of the same seed.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from anomaly_lib.config import given_options
from anomaly_lib.engine.seed import seed_everything
from anomaly_lib.files import read_json
from anomaly_lib.metrics import auroc
from anomaly_lib.systems.weld.inputs import build_features
from anomaly_lib.systems.weld.supcon.task import apply_freeze
from scripts.weld.studies.baselines import Pool, fit_model, prepare
from scripts.weld.studies.ladder import spread
from scripts.weld.studies.of_plain import Plain, measure_plain
from scripts.weld.studies.options import EXTENSIONS, VARIANTS, ExtensionArgs, LadderArgs, TrainingsArgs
from scripts.weld.studies.single import late, mid
from scripts.weld.studies.study_rows import Row, StudyRows

COLUMNS = {"image_auroc": "AUROC", "knn_accuracy": "k-NN accuracy", "knn_macro_f1": "k-NN macro-F1"}
SURE = 0.95


def run_extensions(
    args: ExtensionArgs, say: Callable[[str], object], *, pool: Pool | None = None
) -> list[dict[str, Any]]:
    """Every variant and seed that the table does not hold yet; returns all rows. `pool` shares an encoding."""
    study = StudyRows(Path(args.results), "variant", args)
    trained = [(name, seed) for seed in args.seeds for name in args.variants if name in VARIANTS]
    others = [(name, seed) for seed in args.seeds for name in args.variants if name not in VARIANTS]
    if any(name not in FUSIONS for name, _ in others):  # what is measured of the plain model needs it
        trained = [*(("plain", seed) for seed in args.seeds), *(one for one in trained if one[0] != "plain")]
    plain: dict[int, Plain] = {}
    for variant, seed in [*trained, *others]:
        if study.has(variant, seed):
            continue
        pool = pool or prepare(args)
        if variant in VARIANTS:
            row = measure(args, pool, variant, seed)
        elif variant in FUSIONS:
            row = measure_fusion(args, pool, variant, seed)
        else:
            if seed not in plain:
                plain[seed] = Plain.of(args, pool, seed)
            row = measure_plain(plain[seed], variant)
        study.add({"variant": variant, "seed": seed, **row})
        say(
            f"{variant} seed {seed}: "
            + ", ".join(f"{COLUMNS[name]} {row[name]:.4f}" for name in COLUMNS if name in row)
        )
    return study.finish({*args.variants, "plain"}, args.seeds, lambda rows: table(rows, args.variants), say)


def measure(args: ExtensionArgs, pool: Pool, variant: str, seed: int) -> Row:
    """Train one variant and judge it on TEST."""
    folder = Path(args.results) / f"{variant}-seed{seed}"
    own = args.of_model(**VARIANTS[variant], seed=seed, output_dir=str(folder))
    if own.learning():  # the store then keeps what lies below the blocks that learn
        own_features = build_features(own, pool.features.device)
        pool = replace(pool, features=own_features)
        own_features.prepare([run for part in pool.runs.values() for run in part])
    started = time.process_time()
    detector = fit_model(pool, own)
    seconds = time.process_time() - started
    metrics = read_json(folder / "run.json")["metrics"]
    learning = set(apply_freeze(own, detector.task, 0))
    return {
        **{name: round(metrics[name], 4) for name in COLUMNS},
        "trained_parameters": sum(p.numel() for name, p in detector.task.named_parameters() if name in learning),
        "seconds": round(seconds, 2),
    }


FUSIONS = {"late": late, "mid": mid}
SHARED = {f.name for f in fields(TrainingsArgs)}  # the ladder's own options keep their defaults


def measure_fusion(args: ExtensionArgs, pool: Pool, variant: str, seed: int) -> Row:
    """C-late or C-mid of the ladder, by its own protocol; cross-attention is the plain model."""
    own = LadderArgs(**{name: getattr(args, name) for name in SHARED & given_options(args)}).seeded(seed)
    seed_everything(seed)
    started = time.process_time()
    fitted = FUSIONS[variant](pool, own)
    return {
        "image_auroc": round(auroc(fitted.scores["test"], pool.labels("test")), 4),
        "trained_parameters": fitted.parameters,
        "seconds": round(time.process_time() - started, 2),
    }


# -- the table ----------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row], variants: Sequence[str]) -> list[str]:
    """Markdown: mean +- std over seeds, the paired difference to the plain model and what it says, cost, the rest."""
    heads = ["extension", "variant", *COLUMNS.values(), "against plain", "verdict", "parameters", "CPU s", "further"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    plain = {row["seed"]: row for row in rows if row["variant"] == "plain"}
    for variant in [name for name in EXTENSIONS if name in variants]:
        mine = [row for row in rows if row["variant"] == variant]
        if not mine:
            lines.append(f"| {EXTENSIONS[variant]} | {variant} | not measured |" + " |" * (len(heads) - 3))
            continue
        cells = [spread([row[name] for row in mine if name in row]) for name in COLUMNS]
        cells += list(against(variant, mine, plain))
        cells.append(f"{mine[0]['trained_parameters']:,}" if "trained_parameters" in mine[0] else "-")
        cells.append(f"{np.mean([row['seconds'] for row in mine]):.1f}" if "seconds" in mine[0] else "-")
        further = [row.get("further", {}) for row in mine]
        cells.append(", ".join(f"{name} {spread([one[name] for one in further])}" for name in further[0]))
        lines.append(f"| {' | '.join([EXTENSIONS[variant], variant, *cells])} |")
    return lines


def against(variant: str, rows: Sequence[Row], plain: dict[int, Row]) -> tuple[str, str]:
    """The difference to plain, paired by seed, in words, and whether it helps.

    A row is judged by its AUROC, or by what it is for (`judged`: name, value, reference, better is "higher" or
    "lower"). It helps or hurts where Student's interval of the mean difference leaves out 0.
    """
    if variant == "plain":
        return "-", "-"
    judged = [row.get("judged") or _by_auroc(row, plain.get(row["seed"])) for row in rows]
    judged = [one for one in judged if one is not None]
    if not judged:
        return "-", "-"
    name, better = judged[0]["name"], judged[0]["better"]
    gaps = np.array([one["value"] - one["reference"] for one in judged])
    shown = f"{name} {gaps.mean():+.3f}" + (f" ± {gaps.std():.3f}" if len(gaps) > 1 else "")
    return shown, verdict(gaps if better == "higher" else -gaps)


def _by_auroc(row: Row, plain: Row | None) -> dict[str, Any] | None:
    if plain is None:
        return None
    return {"name": "AUROC", "value": row["image_auroc"], "reference": plain["image_auroc"], "better": "higher"}


def verdict(gains: np.ndarray) -> str:
    """``helps``, ``hurts``, ``no difference`` below half a thousandth, or that these seeds cannot tell."""
    if np.abs(gains).max() < 5e-4:
        return "no difference"
    if len(gains) < 2:
        return "one seed tells nothing"
    reach = stats.t.ppf((1 + SURE) / 2, len(gains) - 1) * gains.std(ddof=1) / len(gains) ** 0.5
    if abs(gains.mean()) <= reach:
        return f"cannot tell ({'+' if gains.mean() > 0 else '-'})"
    return "helps" if gains.mean() > 0 else "hurts"
