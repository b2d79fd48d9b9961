"""The table of docs/causal_film.md: Causal-FiLM, its variants and single modalities on the synthetic welds.

python scripts/weld/demo_results.py --output results.json --seeds 0 1 2 [--variants default joint]
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from anomaly_lib.data.weld.manifest import select_runs
from anomaly_lib.engine.amp import pick_device
from anomaly_lib.files import write_json
from anomaly_lib.recipes.weld.causal_film import Args, build_features, load_detector, open_runs, train
from anomaly_lib.recipes.weld.causal_film_options import resolve, weld_settings
from anomaly_lib.recipes.weld.causal_film_report import per_class, single_modality_scores, split_metrics

VARIANTS: dict[str, dict[str, object]] = {
    "default": {},
    "joint": {"target_mode": "joint"},
    "sensor-train": {"sensor_norm": "train"},
    "no-sensors": {"modulator": "none"},
}


def one_seed(seed: int, names: Sequence[str], folder: Path, epochs: int) -> dict[str, dict[str, float]]:
    """AUROC over all defects and over mismatches, and of each class, for every row of the table."""
    base = Args(seed=seed, demo_seed=seed, epochs=epochs)
    resolved = resolve(base)
    runs = open_runs(resolved)
    features = build_features(resolved, pick_device("cpu"), weld_settings(resolved))
    normal, test = select_runs(runs, "train", normal_only=True), select_runs(runs, "test")
    features.prepare(runs)
    scores = {f"{name} only": s for name, s in single_modality_scores(features, normal, test).items()}
    for name in names:
        args = dataclasses.replace(base, output_dir=str(folder / f"{name}-{seed}"), **VARIANTS[name])
        result = train(args, features=features)
        assert result.checkpoint is not None
        scores[f"Causal-FiLM {name}"] = load_detector(result.checkpoint, features=features).score_runs(test)
    rows = {}
    for name, values in scores.items():
        metrics = split_metrics(values, test)
        rows[name] = {"all": metrics["image_auroc"], "mismatch": metrics["mismatch_auroc"]}
        rows[name] |= {k: row["auroc"] for k, row in per_class(values, test).items() if "auroc" in row}
    return rows


def table(results: list[dict[str, dict[str, float]]]) -> str:
    """Markdown: mean and standard deviation over seeds."""
    columns = list(results[0][next(iter(results[0]))])
    lines = ["| detector | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in results[0]:
        cells = []
        for column in columns:
            values = [result[name][column] for result in results]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.2f} ({spread:.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Train every variant for every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--output", type=Path, default=Path("runs/weld_demo_results/results.json"))
    args = parser.parse_args(argv)
    results = [one_seed(seed, args.variants, args.output.parent, args.epochs) for seed in args.seeds]
    write_json(
        args.output, {"torch": str(torch.__version__), "seeds": args.seeds, "epochs": args.epochs, "results": results}
    )
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
