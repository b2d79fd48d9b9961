"""Train PromptAD for pixel-level anomaly segmentation: ``python train_seg.py --fusion-mode harmonic``."""

import sys
from collections.abc import Sequence

from anomaly_lib.commands.training import train_main


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, leave with an exit code."""
    return train_main("promptad-seg", argv, prog="train_seg.py")


if __name__ == "__main__":
    sys.exit(main())
