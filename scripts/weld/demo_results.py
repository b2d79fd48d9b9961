"""The table of docs/manual/causal_film.md: Causal-FiLM, its variants and single modalities on the synthetic welds.

python scripts/weld/demo_results.py --output results.json --seeds 0 1 2 [--variants default joint]

A single modality appears twice: judged by its nearest good runs, and by a one-class auto-encoder trained on its
features (for the photos: the image-only result model). Seeds that the output file holds already are not repeated.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg
from anomaly_lib.files import write_json
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.systems.weld.causal_film.options import Args

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the scripts import each other from the repository root

if TYPE_CHECKING:
    from torch import Tensor

    from anomaly_lib.systems.weld.data.manifest import WeldRun
    from anomaly_lib.systems.weld.features import WeldFeatures

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "align": {"align": True},
    "joint": {"target_mode": "joint"},
    "sensor-train": {"sensor_norm": "train"},
    "no-sensors": {"modulator": "none"},
}


@dataclass
class TableArgs(Options):
    """The table."""

    seeds: list[int] = arg([0, 1, 2], "seeds of welds and weights")
    variants: list[str] = arg(list(VARIANTS), "rows of Causal-FiLM", choices=list(VARIANTS))
    epochs: int = arg(40, "epochs of each", at_least=1)
    output: str = arg("runs/weld_demo_results/results.json", "results; runs lie beside it")


def trained_alone(
    features: "WeldFeatures", normal: "Sequence[WeldRun]", test: "Sequence[WeldRun]"
) -> "dict[str, Tensor]":
    """Reconstruction error of a one-class auto-encoder of each modality, trained on good runs."""
    from anomaly_lib.systems.weld.causal_film.report import modality_vectors
    from scripts.weld.studies.single import one_class

    known, asked = modality_vectors(features, normal), modality_vectors(features, test)
    return {name: one_class(good)(asked[name]).detach() for name, good in known.items()}


def one_seed(seed: int, names: Sequence[str], folder: Path, epochs: int) -> dict[str, dict[str, float]]:
    """AUROC over all defects and over mismatches, and of each class, for every row of the table."""
    import torch

    from anomaly_lib.engine.seed import seed_everything
    from anomaly_lib.metrics import auroc
    from anomaly_lib.systems.weld.causal_film.detector import load
    from anomaly_lib.systems.weld.causal_film.report import single_modality_scores
    from anomaly_lib.systems.weld.causal_film.train import train
    from anomaly_lib.systems.weld.data.manifest import select_runs
    from anomaly_lib.systems.weld.figures import class_aurocs, mismatch_auroc
    from anomaly_lib.systems.weld.inputs import build_features, open_runs

    base = Args(seed=seed, demo_seed=seed, epochs=epochs)
    runs = open_runs(base)
    features = build_features(base, torch.device("cpu"))
    normal, test = select_runs(runs, "train", normal_only=True), select_runs(runs, "test")
    features.prepare(runs)
    scores = {f"{name} only": s for name, s in single_modality_scores(features, normal, test).items()}
    seed_everything(seed)
    scores |= {f"{name} only, trained": s for name, s in trained_alone(features, normal, test).items()}
    for name in names:
        args = replace(base, output_dir=str(folder / f"{name}-{seed}"), **VARIANTS[name])
        checkpoint = SYSTEMS.read(train(args, features=features).checkpoint)
        scores[f"Causal-FiLM {name}"] = load(checkpoint, features=features).score_runs(test)
    labels = torch.tensor([run.label for run in test])
    rows = {}
    for name, values in scores.items():
        rows[name] = {"all": auroc(values, labels), "mismatch": mismatch_auroc(values, test)}
        rows[name] |= class_aurocs(values, test)
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


def make(args: TableArgs) -> None:
    """Train every variant for every seed and print the table."""
    import torch

    output = Path(args.output)
    known = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {"results": {}}
    asked = {"epochs": args.epochs, "variants": args.variants}
    results = dict(known["results"]) if asked.items() <= known.items() else {}
    for seed in args.seeds:
        if str(seed) not in results:
            results[str(seed)] = one_seed(seed, args.variants, output.parent, args.epochs)
            write_json(output, {"torch": str(torch.__version__), **asked, "results": results})
    print(table([results[str(seed)] for seed in args.seeds]))


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, print, leave with an exit code."""
    return command(TableArgs, make, argv, prog="demo_results.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
