"""The table of docs/manual/causal_film.md: Causal-FiLM, its variants and single modalities on the synthetic welds.

python scripts/weld/demo_results.py --output results.json --seeds 0 1 2 [--variants default joint]

A single modality appears twice: judged by its nearest good runs, and by a one-class auto-encoder trained on its
features (for the photos: the image-only result model). Seeds that the output file holds already are not repeated.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from anomaly_lib.engine.amp import pick_device
from anomaly_lib.engine.seed import seed_everything
from anomaly_lib.files import write_json
from anomaly_lib.systems.weld.causal_film.options import resolve
from anomaly_lib.systems.weld.causal_film.report import (
    modality_vectors,
    per_class,
    single_modality_scores,
    split_metrics,
)
from anomaly_lib.systems.weld.causal_film.train import Args, load_detector, train
from anomaly_lib.systems.weld.data.manifest import WeldRun, select_runs
from anomaly_lib.systems.weld.features import WeldFeatures
from anomaly_lib.systems.weld.inputs import build_features, open_runs, weld_settings
from scripts.weld.studies.baselines import one_class

VARIANTS: dict[str, dict[str, object]] = {
    "default": {},
    "joint": {"target_mode": "joint"},
    "sensor-train": {"sensor_norm": "train"},
    "no-sensors": {"modulator": "none"},
}


def trained_alone(
    features: WeldFeatures, normal: Sequence[WeldRun], test: Sequence[WeldRun]
) -> dict[str, torch.Tensor]:
    """Reconstruction error of a one-class auto-encoder of each modality, trained on good runs."""
    known, asked = modality_vectors(features, normal), modality_vectors(features, test)
    return {name: one_class(good)(asked[name]).detach() for name, good in known.items()}


def one_seed(seed: int, names: Sequence[str], folder: Path, epochs: int) -> dict[str, dict[str, float]]:
    """AUROC over all defects and over mismatches, and of each class, for every row of the table."""
    base = Args(seed=seed, demo_seed=seed, epochs=epochs)
    resolved = resolve(base)
    runs = open_runs(resolved)
    features = build_features(resolved, pick_device("cpu"), weld_settings(resolved))
    normal, test = select_runs(runs, "train", normal_only=True), select_runs(runs, "test")
    features.prepare(runs)
    scores = {f"{name} only": s for name, s in single_modality_scores(features, normal, test).items()}
    seed_everything(seed)
    scores |= {f"{name} only, trained": s for name, s in trained_alone(features, normal, test).items()}
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
    parser.add_argument("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--output", type=Path, default=Path("runs/weld_demo_results/results.json"))
    args = parser.parse_args(argv)
    known = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else {"results": {}}
    results = dict(known["results"]) if known.get("variants") == args.variants else {}
    for seed in args.seeds:
        if str(seed) not in results:
            results[str(seed)] = one_seed(seed, args.variants, args.output.parent, args.epochs)
            facts = {"torch": str(torch.__version__), "epochs": args.epochs, "variants": args.variants}
            write_json(args.output, {**facts, "results": results})
    print(table([results[str(seed)] for seed in args.seeds]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
