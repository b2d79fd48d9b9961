"""Train SOWA / HFWA: ``python scripts/sowa/train_sowa.py --dataset visa --data-path VISA --eval-data-path MVTEC``.

Without flags it trains on three built-in demo classes and tests on the two others.
"""

import sys
from collections.abc import Sequence

from anomaly_lib.commands.training import train_main


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, leave with an exit code."""
    return train_main("sowa", argv, prog="train_sowa.py")


if __name__ == "__main__":
    sys.exit(main())
