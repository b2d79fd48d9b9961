"""Train a crystal property model on structure and text: ALIGNN with middle, cross-modal and late fusion.

Without options it trains on built-in crystals and shows what fusion adds; `--root_dir` names real data.
"""

import sys
from collections.abc import Sequence

from anomaly_lib.commands.training import train_main


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, leave with an exit code."""
    return train_main("crystal", argv, prog="train_with_cross_modal_attention.py")


if __name__ == "__main__":
    sys.exit(main())
