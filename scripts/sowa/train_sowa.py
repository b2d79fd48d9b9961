"""Train SOWA / HFWA: ``python scripts/sowa/train_sowa.py --dataset visa --data-path VISA --eval-data-path MVTEC``.

Without flags it trains on three built-in demo classes and tests on the two others.
"""

import sys
from collections.abc import Sequence

from anomaly_lib.command_line import command
from anomaly_lib.systems.registry import SYSTEMS


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, leave with an exit code."""
    sowa = SYSTEMS["sowa"]
    return command(sowa.Args, sowa.train, argv, prog="train_sowa.py", description="SOWA: frozen window attention")


if __name__ == "__main__":
    sys.exit(main())
