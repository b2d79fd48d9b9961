"""Two trained models side by side: scales, balance, cosines before and after fusion, gates, test error."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg
from anomaly_lib.errors import UserError


@dataclass
class CompareArgs(Options):
    """Comparison of two checkpoints."""

    model1: str = arg("", "first checkpoint")
    model2: str = arg("", "second checkpoint")
    data_path: Optional[str] = arg(
        None, "folder of the data; None = that of the training run", type=str, aliases=["root-dir"]
    )
    n_samples: int = arg(50, "crystals to measure", at_least=2)
    part: str = arg("all", "which crystals", choices=["all", "train", "val", "test"])


def compare(args: CompareArgs) -> None:
    """Print both models' figures and what differs."""
    if not args.model1 or not args.model2:
        raise UserError("give model1= and model2=")
    from anomaly_lib.detect.scores import summary
    from anomaly_lib.systems.crystal import diagnosis

    summaries = []
    for number, path in enumerate((args.model1, args.model2), start=1):
        detector = diagnosis.trained_model(path)
        data = detector.load_data(args.data_path)
        positions = diagnosis.sample_positions(data, args.n_samples, args.part)
        values = diagnosis.measure(detector, data, positions)
        summaries.append(diagnosis.Summary.of(values[sorted(values)[0]]))
        own = detector.args
        scores = detector.score(detector.selection(data, "test", batch_size=own.batch_size))
        figures = summary(scores, detector.decision)
        scales = ", ".join(f"{name} {value:.4f}" for name, value in diagnosis.text_scales(detector).items())
        print(f"model {number}: {path}")
        print(f"  gate norm {own.middle_fusion_use_gate_norm}, text_scale {scales}")
        print("  " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    print("\n".join(diagnosis.comparison_lines(*summaries)))


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run."""
    return command(CompareArgs, compare, argv, prog="compare_fusion_models.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
