"""Two trained models side by side: scales, balance, cosines before and after fusion, gates, test error."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from anomaly_lib.command_line import command
from anomaly_lib.config import arg, override
from anomaly_lib.errors import UserError
from anomaly_lib.systems.crystal.sample import SampleArgs


@dataclass
class CompareArgs(SampleArgs):
    """Comparison of two checkpoints."""

    model1: str = arg("", "first checkpoint, ours or an original program's")
    model2: str = arg("", "second checkpoint, likewise")
    n_samples: int = override(SampleArgs, "n_samples", 50)


def compare(args: CompareArgs) -> None:
    """Print both models' figures and what differs, for every layer after which text is injected."""
    if not args.model1 or not args.model2:
        raise UserError("give model1= and model2=")
    from anomaly_lib.detect.scores import summary
    from anomaly_lib.systems.crystal import diagnosis

    summaries = []
    for number, path in enumerate((args.model1, args.model2), start=1):
        detector, data, positions = diagnosis.open_sample(path, args, "test")
        own = detector.args
        values = diagnosis.measure(detector, data, positions)
        summaries.append({layer: diagnosis.Summary.of(found) for layer, found in values.items()})
        scores = detector.score(detector.selection(data, "test", batch_size=own.batch_size))
        figures = summary(scores, detector.decision)
        scales = ", ".join(f"{name} {value:.4f}" for name, value in diagnosis.text_scales(detector).items())
        print(f"model {number}: {path}")
        print(f"  gate norm {own.middle_fusion_use_gate_norm}, text_scale {scales}")
        print("  " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
        for remark in detector.facts.remarks():
            print(f"  {remark}")
    for line in diagnosis.comparison_of_layers(*summaries):
        print(line)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run."""
    return command(CompareArgs, compare, argv, prog="compare_fusion_models.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
