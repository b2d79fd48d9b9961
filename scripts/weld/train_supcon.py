"""Train the V4 quad-modal weld model: ``python scripts/weld/train_supcon.py --quick-test --debug``."""

import sys
from collections.abc import Sequence

from anomaly_lib.commands.training import train_main


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, leave with an exit code."""
    return train_main("supcon", argv, prog="train_supcon.py")


if __name__ == "__main__":
    sys.exit(main())
