"""What middle fusion does with the text in a trained model, before and after it, over a whole sample of crystals."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from anomaly_lib.command_line import command
from anomaly_lib.config import arg
from anomaly_lib.errors import UserError
from anomaly_lib.systems.crystal.sample import SampleArgs


@dataclass
class DiagnoseArgs(SampleArgs):
    """Diagnosis of one checkpoint."""

    checkpoint: str = arg("", "checkpoint file, e.g. best_model.pt; also one of an original program")
    batch_size: int = arg(16, "crystals at a time", at_least=1)


def diagnose(args: DiagnoseArgs) -> None:
    """Print the report of every fusion module."""
    if not args.checkpoint:
        raise UserError("give checkpoint=")
    from anomaly_lib.systems.crystal.diagnosis import diagnosis_lines, measure, open_sample, text_scales

    detector, data, positions = open_sample(args.checkpoint, args)
    for remark in detector.facts.remarks():
        print(remark)
    scales = text_scales(detector)
    for layer, values in measure(detector, data, positions, batch_size=args.batch_size).items():
        print(f"{layer}: {len(positions)} crystals, {len(values['alpha'])} atoms, text_scale {scales[layer]:.4f}")
        print("\n".join(diagnosis_lines(values)))


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run."""
    return command(DiagnoseArgs, diagnose, argv, prog="diagnose_fusion_effectiveness.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
