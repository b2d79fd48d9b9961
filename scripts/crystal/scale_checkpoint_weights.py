"""Multiply the text transform of every middle fusion module by a factor: the quick test of a larger text scale."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly_lib.command_line import command
from anomaly_lib.config import Options, arg
from anomaly_lib.errors import UserError


@dataclass
class ScaleArgs(Options):
    """A checkpoint with a stronger or weaker text branch."""

    input_checkpoint: str = arg("", "checkpoint to read")
    output_checkpoint: str = arg("", "checkpoint to write")
    scale_factor: float = arg(12.0, "factor on weight and bias of the last linear map of the text transform")


def scale(args: ScaleArgs) -> None:
    """Scale, save, read back, verify."""
    if not args.input_checkpoint or not args.output_checkpoint:
        raise UserError("give input_checkpoint= and output_checkpoint=")
    from anomaly_lib.systems.crystal.scales import scale_checkpoint

    norms = scale_checkpoint(Path(args.input_checkpoint), Path(args.output_checkpoint), args.scale_factor)
    for name, (before, after) in norms.items():
        print(f"{name}: L2 norm {before:.4f} -> {after:.4f}")
        if abs(after - abs(args.scale_factor) * before) > 0.01 * max(after, 1e-6):
            raise UserError(f"{args.output_checkpoint}: {name} does not have the scaled norm")
    print(f"verified, written to {args.output_checkpoint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run."""
    return command(ScaleArgs, scale, argv, prog="scale_checkpoint_weights.py", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
