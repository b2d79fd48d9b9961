"""Two trained models side by side: scales, balance, cosines before and after fusion, gates, test error."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from anomaly_lib.config import Options, arg, command
from anomaly_lib.errors import UserError
from anomaly_lib.systems.crystal.diagnosis import Summary, comparison_lines, measure, sample_positions, text_scales
from anomaly_lib.systems.crystal.train import load_detector


@dataclass
class CompareArgs(Options):
    """Comparison of two checkpoints."""

    model1: str = arg("", "first checkpoint")
    model2: str = arg("", "second checkpoint")
    root_dir: Optional[str] = arg(None, "folder of the data; None = that of the training run", type=str)
    n_samples: int = arg(50, "crystals to measure", at_least=2)
    part: str = arg("all", "which crystals", choices=["all", "train", "val", "test"])


def compare(args: CompareArgs) -> None:
    """Print both models' figures and what differs."""
    if not args.model1 or not args.model2:
        raise UserError("--model1 and --model2 are both needed")
    summaries = []
    for number, path in enumerate((args.model1, args.model2), start=1):
        detector = load_detector(path)
        data = detector.load_data(args.root_dir)
        positions = sample_positions(data, args.n_samples, args.part)
        values = measure(detector, data, positions)
        summaries.append(Summary.of(values[sorted(values)[0]]))
        own = detector.args
        figures = detector.figures(data, data.split.test)
        scales = ", ".join(f"{name} {value:.4f}" for name, value in text_scales(detector).items())
        print(f"model {number}: {path}")
        print(f"  gate norm {own.middle_fusion_use_gate_norm}, text_scale {scales}")
        print("  test " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    print("\n".join(comparison_lines(*summaries)))


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run."""
    return command(CompareArgs, compare, argv, prog="compare_fusion_models.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
