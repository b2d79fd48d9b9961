"""Train a detector on one class of any image data set. `--model NAME --help` shows the options of that one."""

import sys
from collections.abc import Sequence

from anomaly_lib.commands.training import train_main


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, leave with an exit code."""
    return train_main("detector", argv, prog="train_detector.py")


if __name__ == "__main__":
    sys.exit(main())
