"""Real crystals, five kinds of models, several seeds: what does the text add? Writes a Markdown table from run folders.

    python scripts/crystal/run_jarvis_mini.py --root_dir dataset --properties formation_energy_peratom bulk_modulus_kv

Runs that are done are not done again, so the script can be stopped and started at will.
"""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg
from anomaly_lib.files import write_text
from anomaly_lib.systems.crystal.options import Args
from anomaly_lib.systems.registry import SYSTEMS

MIDDLE = {
    "use_middle_fusion": True, "middle_fusion_use_gate_norm": True, "middle_fusion_use_learnable_scale": True,
    "middle_fusion_layers": [1],
}  # fmt: skip
VARIANTS: dict[str, dict[str, object]] = {
    "graph only": {"modality": "graph"},
    "text only": {"modality": "text"},
    "graph + text, concat": {"use_cross_modal": False},
    "middle fusion": {"use_cross_modal": False, **MIDDLE},
    "middle fusion + cross-modal": {"use_cross_modal": True, **MIDDLE},
}


@dataclass
class TableArgs(Options):
    """The comparison on real data."""

    data_path: str = arg("dataset", "folder in the published layout, with official_split.json", aliases=["root-dir"])
    properties: list[str] = arg(["formation_energy_peratom"], "properties to compare on")
    seeds: int = arg(3, "runs of each kind", at_least=1)
    epochs: int = arg(30, "passes over the training data", at_least=1)
    hidden_features: int = arg(32, "channels", at_least=8)
    layers: int = arg(2, "layers of each of the two stacks", at_least=2)
    batch_size: int = arg(32, "crystals per step", at_least=1)
    learning_rate: float = arg(3e-3, "peak learning rate", at_least=0)
    weights: str = arg("", "local MatSciBERT folder; empty = built-in hashed n-grams")
    output_dir: str = arg("runs/crystal/jarvis_mini", "folder of the runs and of table.md")


def run_all(args: TableArgs) -> None:
    """Train what is missing, then write the table."""
    found: dict[tuple[str, str], list[float]] = {}
    means: dict[str, float] = {}
    for seed in range(args.seeds):
        for prop in args.properties:
            for name, options in VARIANTS.items():
                folder = Path(args.output_dir) / f"{name.replace(' ', '_').replace(',', '')}-{seed}"
                text = {"backbone": "matscibert", "weights": args.weights} if args.weights else {}
                run = Args(
                    data_path=args.data_path, property=prop, split_file="official", seed=seed, epochs=args.epochs,
                    hidden_features=args.hidden_features, alignn_layers=args.layers, gcn_layers=args.layers,
                    batch_size=args.batch_size, learning_rate=args.learning_rate, output_dir=str(folder),
                    **options, **(text if options.get("modality") != "graph" else {}),
                )  # fmt: skip
                metrics = SYSTEMS["crystal"].train(run).metrics
                found.setdefault((prop, name), []).append(metrics["test_mae"])
                means[prop] = metrics["mean_predictor_test_mae"]
                write_text(Path(args.output_dir) / "table.md", table(args, found, means))
    print(table(args, found, means))


def table(args: TableArgs, found: dict[tuple[str, str], list[float]], means: dict[str, float]) -> str:
    """Test MAE, mean and standard deviation over the seeds that are done."""
    lines = ["| model | " + " | ".join(args.properties) + " |", "|---|" + "---|" * len(args.properties)]
    lines.append(
        "| mean of the training targets | " + " | ".join(f"{means.get(p, 0):.3f}" for p in args.properties) + " |"
    )
    for name in VARIANTS:
        cells = []
        for prop in args.properties:
            values = found.get((prop, name), [])
            spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread} (n={len(values)})" if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run."""
    return command(TableArgs, run_all, argv, prog="run_jarvis_mini.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
