"""Train PromptAD for image-level anomaly detection: ``python train_cls.py --fusion-mode harmonic``."""

import sys
from collections.abc import Sequence

from anomaly_lib.commands.training import train_main


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, leave with an exit code."""
    return train_main("promptad-cls", argv, prog="train_cls.py")


if __name__ == "__main__":
    sys.exit(main())
