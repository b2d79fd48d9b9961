"""Train PromptAD for pixel-level anomaly segmentation: ``python train_seg.py --fusion-mode harmonic``."""

import sys
from collections.abc import Sequence

from anomaly_lib.command_line import command
from anomaly_lib.systems.promptad.options import SegArgs
from anomaly_lib.systems.registry import SYSTEMS


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, leave with an exit code."""
    train = SYSTEMS["promptad"].train
    return command(SegArgs, train, argv, prog="train_seg.py", description="PromptAD, pixel level (few-shot, CLIP)")


if __name__ == "__main__":
    sys.exit(main())
